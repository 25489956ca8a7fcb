"""Set-up and checks behind make. Never imported by the product."""
