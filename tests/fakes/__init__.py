"""Other people's servers, as small as tests need them."""
