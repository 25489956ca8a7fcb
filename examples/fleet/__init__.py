"""A small fleet on one machine: real controller and agent processes, cameras that send requests.

Starts and stops processes and measures what it sees; decides nothing and reads no database.
"""
