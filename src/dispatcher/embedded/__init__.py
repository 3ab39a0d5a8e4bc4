"""What `dispatcher dev` brings along: a local PostgreSQL, a demo receiver and the ledger it is judged by."""
