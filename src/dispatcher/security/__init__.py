"""What keeps secrets secret and requests where they belong: signing, sealing, the egress policy, header rules."""
