"""What a person uses in a terminal beside the gateway: send pictures, watch results."""
