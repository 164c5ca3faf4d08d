//! Who says what a worker's cache holds.

/// How it is known what a worker's cache holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Source {
    /// This gateway predicts it alone, from what it sends there.
    #[default]
    Own,
    /// It is told, as its engine reports it.
    Fed,
    /// It is told, as some node predicts it from what all nodes send there and claim.
    FedAndClaimed,
}

impl Source {
    /// The word in answers.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Own => "own",
            Self::Fed => "events",
            Self::FedAndClaimed => "predicted",
        }
    }
}
