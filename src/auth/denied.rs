//! Why somebody is not let in.

use crate::token::TokenFault;

/// Why somebody is not let in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Denied {
    /// Nothing was presented.
    Missing,
    /// What was presented is nobody's.
    Unknown,
    /// The key is past its time.
    Expired,
    /// The key was revoked.
    Revoked,
    /// The token is not believed.
    Token(TokenFault),
    /// The identity provider's keys are needed, and cannot be had.
    Unavailable,
}

impl Denied {
    /// What the caller is told: nothing that it could not know already.
    pub fn message(self) -> &'static str {
        match self {
            Self::Missing => "an API key is required: send it as 'Authorization: Bearer KEY' or 'x-api-key: KEY'",
            Self::Unknown => "the API key is not valid",
            Self::Expired => "the API key has expired",
            Self::Revoked => "the API key has been revoked",
            Self::Token(TokenFault::Expired) => "the token has expired",
            Self::Token(_) => "the token is not valid",
            Self::Unavailable => "tokens cannot be checked now, because the identity provider does not answer",
        }
    }

    /// The label in metrics.
    pub fn reason(self) -> &'static str {
        match self {
            Self::Missing => "missing",
            Self::Unknown => "unknown",
            Self::Expired => "expired",
            Self::Revoked => "revoked",
            Self::Token(fault) => fault.as_str(),
            Self::Unavailable => "unavailable",
        }
    }
}
