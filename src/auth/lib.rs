//! Who calls: API keys and tokens of identity providers, turned into a principal.
