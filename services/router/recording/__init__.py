"""Records when requests arrive, how long they are and what becomes of them; never what is in them."""
