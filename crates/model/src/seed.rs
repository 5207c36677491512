//! The name of an order.

use std::fmt;
use std::str::FromStr;

use crate::explore::Decisions;

/// Names one order of a case, so that it can be seen again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Seed {
    /// The order that chance gives from this number.
    Number(u64),
    /// Every decision of the order, one character each.
    Decisions(Written),
}

/// The decisions of an order, each a digit or a letter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Written(pub(crate) Decisions);

const DIGITS: &[u8; 36] = b"0123456789abcdefghijklmnopqrstuvwxyz";

impl fmt::Display for Seed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Number(number) => number.fmt(f),
            Self::Decisions(Written(decisions)) => {
                f.write_str("x")?;
                for &decision in decisions {
                    let digit = DIGITS.get(usize::from(decision)).copied().unwrap_or(b'z');
                    write!(f, "{}", char::from(digit))?;
                }
                Ok(())
            }
        }
    }
}

/// What was given is neither a number nor the decisions of an order.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is no seed: a number, or x and digits and small letters as `check` prints them")]
pub struct NoSeed(String);

impl FromStr for Seed {
    type Err = NoSeed;

    fn from_str(text: &str) -> Result<Self, NoSeed> {
        let wrong = || NoSeed(text.to_owned());
        let Some(digits) = text.strip_prefix('x') else {
            return text.parse().map(Self::Number).map_err(|_| wrong());
        };
        let digit = |byte: u8| {
            let at = DIGITS.iter().position(|digit| *digit == byte);
            at.and_then(|at| u8::try_from(at).ok()).ok_or_else(wrong)
        };
        let decisions: Result<Decisions, _> = digits.bytes().map(digit).collect();
        decisions.map(|decisions| Self::Decisions(Written(decisions)))
    }
}
