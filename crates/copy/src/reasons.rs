//! For which reasons a copier is asked.

use std::fmt;
use std::str::FromStr;

use transhume_engine::Reason;

/// A set of reasons for a migration.
///
/// As text it is `all`, or names with commas between, such as `demotion,promotion`.
///
/// ```
/// # use transhume_copy::Reasons;
/// # use transhume_engine::Reason;
/// let reasons: Reasons = "demotion,promotion".parse()?;
/// assert!(reasons.contains(Reason::Demotion) && !reasons.contains(Reason::UserCall));
/// assert_eq!(reasons, [Reason::Promotion, Reason::Demotion].into_iter().collect());
/// # Ok::<(), transhume_copy::UnknownReason>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Reasons(u32);

impl Reasons {
    /// Every reason there is.
    pub const ALL: Self = Self((1 << Reason::ALL.len()) - 1);

    /// Whether this reason is one of them.
    #[must_use]
    pub fn contains(self, reason: Reason) -> bool {
        self.0 & bit(reason) != 0
    }

    fn iter(self) -> impl Iterator<Item = Reason> {
        let all = Reason::ALL.into_iter();
        all.filter(move |&reason| self.contains(reason))
    }
}

fn bit(reason: Reason) -> u32 {
    let place = Reason::ALL.iter().position(|&other| other == reason);
    place.map_or(0, |place| 1 << place)
}

impl Default for Reasons {
    fn default() -> Self {
        Self::ALL
    }
}

impl FromIterator<Reason> for Reasons {
    fn from_iter<I: IntoIterator<Item = Reason>>(reasons: I) -> Self {
        let bits = reasons.into_iter().map(bit);
        Self(bits.fold(0, |all, bit| all | bit))
    }
}

impl fmt::Display for Reasons {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::ALL => f.write_str("all"),
            Self(0) => f.write_str("none"),
            some => {
                let names = some.iter().map(Reason::name);
                f.write_str(&names.collect::<Vec<_>>().join(","))
            }
        }
    }
}

/// No reason has this name.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no reason is named '{0}'; the reasons are {names}, or all", names = names())]
pub struct UnknownReason(pub String);

fn names() -> String {
    Reason::ALL.map(Reason::name).join(", ")
}

impl FromStr for Reasons {
    type Err = UnknownReason;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "all" => Ok(Self::ALL),
            "none" => Ok(Self(0)),
            list => list
                .split(',')
                .map(|name| {
                    let known = Reason::ALL.into_iter();
                    let mut found = known.filter(|reason| reason.name() == name);
                    found.next().ok_or_else(|| UnknownReason(name.to_owned()))
                })
                .collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_set_reads_as_it_is_written() {
        for bits in 0..=Reasons::ALL.0 {
            let reasons = Reasons(bits);
            assert_eq!(reasons.to_string().parse(), Ok(reasons));
            assert_eq!(reasons.iter().collect::<Reasons>(), reasons);
        }
        let every = Reason::ALL.map(Reason::name).join(",");
        assert_eq!(every.parse(), Ok(Reasons::ALL));
    }

    #[test]
    fn other_names_are_refused() {
        for (list, wrong) in [
            ("", ""),
            ("demotion,", ""),
            ("demotion,all", "all"),
            ("Demotion", "Demotion"),
        ] {
            assert_eq!(
                list.parse::<Reasons>(),
                Err(UnknownReason(wrong.to_owned()))
            );
        }
        let line = UnknownReason("boredom".to_owned()).to_string();
        assert!(
            line.contains("user, demotion, promotion, compaction, or all"),
            "{line}"
        );
    }
}
