"""What tests share: waiting, ports, servers. Holds no assertion about the product."""
