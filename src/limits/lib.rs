//! Limits: how much a tenant, a key or a model may use, counted in windows of time, on one node and over many.
