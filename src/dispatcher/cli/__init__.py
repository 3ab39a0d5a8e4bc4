"""The command line. `main` names the commands, a module each; `client` alone speaks gRPC and is loaded on first use."""
