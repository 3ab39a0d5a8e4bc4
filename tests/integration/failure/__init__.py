"""What happens when receivers misbehave: real database, real receiver, everything between them."""
