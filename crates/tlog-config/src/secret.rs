//! A text that is never shown.

use std::fmt;

use zeroize::Zeroizing;

/// A password. Wiped from memory when it is dropped; `Debug` shows that there is one, and not which.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(Zeroizing<String>);

impl Secret {
    /// Takes it.
    pub fn new(text: impl Into<String>) -> Self {
        Self(Zeroizing::new(text.into()))
    }

    /// The text itself, for whoever must send it.
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(***)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_is_not_shown_by_debug() {
        let secret = Secret::new("open sesame");
        assert_eq!(format!("{secret:?}"), "Secret(***)");
        assert_eq!(secret.reveal(), "open sesame");
    }
}
