//! The protocol version and how versions compare.

use std::cmp::Ordering;
use std::fmt;
use std::str::FromStr;

/// How ready a version is. Everything but [`Stage::Live`] is a pre-release.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Stage {
    /// Released.
    Live,
    /// Release candidate.
    Rc,
    /// Beta.
    Beta,
    /// Alpha.
    Alpha,
    /// Development.
    Dev,
    /// A stage byte that has no name here. A pre-release.
    Other(u8),
}

impl Stage {
    /// The byte on the wire.
    pub fn byte(self) -> u8 {
        match self {
            Stage::Live => 1,
            Stage::Rc => 2,
            Stage::Beta => 4,
            Stage::Alpha => 8,
            Stage::Dev => 16,
            Stage::Other(byte) => byte,
        }
    }

    fn from_byte(byte: u8) -> Self {
        match byte {
            1 => Stage::Live,
            2 => Stage::Rc,
            4 => Stage::Beta,
            8 => Stage::Alpha,
            16 => Stage::Dev,
            other => Stage::Other(other),
        }
    }
}

/// A protocol version, on the wire `major << 24 | minor << 16 | patch << 8 | stage`.
///
/// Versions compare by major, minor and patch; where these are equal, any pre-release is older than live, and two
/// pre-releases are of the same age (but still not equal as values: the order is on [`Version::age`]).
///
/// ```
/// use tlog_proto::Version;
/// let alpha: Version = "1.1.0-alpha".parse().unwrap();
/// assert_eq!(alpha, Version::MIN_SUPPORTED);
/// assert!(alpha.is_older_than("1.1.0".parse().unwrap()));
/// assert!(!alpha.is_older_than("1.1.0-rc".parse().unwrap()));
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Version(u32);

impl Version {
    /// What this implementation says it speaks.
    pub const CURRENT: Version = Version(0x0101_0008);
    /// Oldest peer that is served. The original calls it `MinSupportedVersion`.
    pub const MIN_SUPPORTED: Version = Version(0x0101_0008);

    /// Puts a version together.
    pub fn new(major: u8, minor: u8, patch: u8, stage: Stage) -> Self {
        Self(u32::from_be_bytes([major, minor, patch, stage.byte()]))
    }

    /// As it stands in a handshake.
    pub fn from_wire(version: u32) -> Self {
        Self(version)
    }

    /// As it stands in a handshake.
    pub fn to_wire(self) -> u32 {
        self.0
    }

    /// Its stage.
    pub fn stage(self) -> Stage {
        let [.., stage] = self.0.to_be_bytes();
        Stage::from_byte(stage)
    }

    /// Compares by age: [`Ordering::Less`] where `self` is the older one.
    pub fn age(self, other: Version) -> Ordering {
        let live = |version: Version| version.stage() == Stage::Live;
        (self.0 >> 8).cmp(&(other.0 >> 8)).then(live(self).cmp(&live(other)))
    }

    /// Whether `other` is newer.
    pub fn is_older_than(self, other: Version) -> bool {
        self.age(other) == Ordering::Less
    }

    /// Whether a peer of this version is served.
    pub fn is_supported(self) -> bool {
        !self.is_older_than(Self::MIN_SUPPORTED)
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [major, minor, patch, _] = self.0.to_be_bytes();
        write!(f, "{major}.{minor}.{patch}")?;
        match self.stage() {
            Stage::Live => Ok(()),
            Stage::Rc => f.write_str("-rc"),
            Stage::Beta => f.write_str("-beta"),
            Stage::Alpha => f.write_str("-alpha"),
            Stage::Dev => f.write_str("-dev"),
            Stage::Other(byte) => write!(f, "-stage{byte}"),
        }
    }
}

impl fmt::Debug for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Version({self})")
    }
}

/// Not a version as [`Version`] prints it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a version such as 1.1.0 or 1.1.0-alpha")]
pub struct ParseVersionError(String);

impl FromStr for Version {
    type Err = ParseVersionError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let parse = || {
            let (numbers, stage) = match text.split_once('-') {
                None => (text, Stage::Live),
                Some((numbers, "rc")) => (numbers, Stage::Rc),
                Some((numbers, "beta")) => (numbers, Stage::Beta),
                Some((numbers, "alpha")) => (numbers, Stage::Alpha),
                Some((numbers, "dev")) => (numbers, Stage::Dev),
                Some((numbers, other)) => {
                    (numbers, Stage::from_byte(other.strip_prefix("stage")?.parse().ok()?))
                }
            };
            let mut numbers = numbers.split('.').map(|number| number.parse::<u8>().ok());
            let version = Version::new(numbers.next()??, numbers.next()??, numbers.next()??, stage);
            numbers.next().is_none().then_some(version)
        };
        parse().ok_or_else(|| ParseVersionError(text.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_print_and_parse_back() {
        for text in ["1.1.0-alpha", "1.1.0", "2.0.13-rc", "0.1.2-beta", "1.0.0-dev", "1.0.0-stage3"] {
            assert_eq!(text.parse::<Version>().unwrap().to_string(), text);
        }
        for bad in ["", "1", "1.1", "1.1.0.0", "1.1.256", "1.1.0-", "1.1.0-gamma", "a.b.c"] {
            assert!(bad.parse::<Version>().is_err(), "{bad:?}");
        }
        assert_eq!("1.1.0-alpha".parse::<Version>().unwrap().to_wire(), 0x0101_0008);
    }

    #[test]
    fn a_pre_release_is_older_than_the_live_version_of_the_same_number_only() {
        let version = |text: &str| text.parse::<Version>().unwrap();
        assert!(version("1.1.0-rc").is_older_than(version("1.1.0")));
        assert!(!version("1.1.0-dev").is_older_than(version("1.1.0-rc")));
        assert!(version("1.1.0").is_older_than(version("1.1.1-dev")));
        assert!(!version("1.1.0").is_older_than(version("1.1.0-alpha")));
        assert!(version("1.1.0-dev").is_supported());
        assert!(!version("1.0.9").is_supported());
    }
}
