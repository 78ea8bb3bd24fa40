"""The processes of the private cloud: issuer, relay, gateway, node, log; and all of them on one machine."""
