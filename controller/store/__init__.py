"""The only room that knows SQLAlchemy: tables, session, one file per noun. Decides nothing."""
