"""What `edge-gateway doctor` and `edge-gateway models` find out; starts nothing and changes nothing."""
