"""The Flower app's client side: thin, the code is in fedattn."""
