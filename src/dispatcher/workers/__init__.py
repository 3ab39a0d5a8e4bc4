"""`serve --workers N`: several processes behind one gRPC port, and the one that looks after them."""
