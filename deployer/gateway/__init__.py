"""The gateway: one HTTP server in front of a deployment's engines."""
