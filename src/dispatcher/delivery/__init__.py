"""HTTP out: leases, lanes, attempts and the client that sends webhooks."""
