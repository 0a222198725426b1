"""How long things take, measured on the device while training goes on."""
