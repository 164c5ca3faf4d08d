//! Callers that go away.
