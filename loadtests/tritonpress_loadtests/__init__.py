"""Load tests of served models: Locust users over the client, measured on both sides."""
