"""Operations of the store, each within one transaction."""
