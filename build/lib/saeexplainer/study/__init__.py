"""Many runs compared, and the page about them."""
