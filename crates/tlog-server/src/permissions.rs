//! Which certificate may write which vdisk.

use std::fmt;
use std::str::FromStr;

use rustls::pki_types::DnsName;
use tlog_proto::VdiskId;

/// Rules that say which vdisks the owner of a client certificate may write.
///
/// With no rules at all, every certificate of the client CA may write every vdisk. With any, a vdisk may be written by those that
/// a rule permits, and by nobody else.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Permissions {
    rules: Vec<PermissionRule>,
}

/// One rule, written `NAME=VDISK`.
///
/// NAME is a DNS name in the subjectAltName of the client's certificate; capitals do not matter. A name with a wildcard in a
/// certificate fits no rule: it says for which hosts it is good, not who its owner is. VDISK is the id of a vdisk, or a pattern
/// in which each `*` stands for any run of characters, also for none; `*` alone is every vdisk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PermissionRule {
    /// In small letters.
    name: String,
    vdisks: String,
}

/// A text that is no rule.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PermissionRuleError {
    /// Nothing that parts the two halves.
    #[error("{0:?} is no rule; write NAME=VDISK, such as backup.example.org=vm-*")]
    NoVdisk(String),
    /// The first half is no name.
    #[error(
        "{name:?} in the rule {rule:?} is not a DNS name; write the name as it stands in the subjectAltName of the client's \
         certificate, such as backup.example.org=vm-*"
    )]
    Name {
        /// The whole rule.
        rule: String,
        /// The half that is wrong.
        name: String,
    },
    /// The second half fits no vdisk.
    #[error(
        "{vdisks:?} in the rule {rule:?} fits no vdisk; write a vdisk id, of ASCII letters, digits and -_.:@+, with * for any \
         characters"
    )]
    Vdisks {
        /// The whole rule.
        rule: String,
        /// The half that is wrong.
        vdisks: String,
    },
}

impl Permissions {
    /// These rules.
    pub fn new(rules: Vec<PermissionRule>) -> Self {
        Self { rules }
    }

    /// Whether there are no rules, so that every certificate may write every vdisk.
    pub fn is_empty(&self) -> bool {
        self.rules.is_empty()
    }

    /// Whether a certificate with these names may write this vdisk.
    pub fn permit<'a>(&self, names: impl IntoIterator<Item = &'a str>, vdisk: &VdiskId) -> bool {
        self.is_empty()
            || names.into_iter().any(|name| {
                let mut rules = self.rules.iter();
                rules.any(|rule| rule.name.eq_ignore_ascii_case(name) && fits(&rule.vdisks, vdisk.as_str()))
            })
    }
}

impl FromStr for PermissionRule {
    type Err = PermissionRuleError;

    fn from_str(text: &str) -> Result<Self, PermissionRuleError> {
        let rule = text.trim();
        let Some((name, vdisks)) = rule.split_once('=') else {
            return Err(PermissionRuleError::NoVdisk(rule.to_owned()));
        };
        let (name, vdisks) = (name.trim(), vdisks.trim());
        if DnsName::try_from(name).is_err() {
            return Err(PermissionRuleError::Name { rule: rule.to_owned(), name: name.to_owned() });
        }
        // Some vdisk fits exactly where the pattern is a legal id once its stars are out of the way.
        let example = vdisks.replace('*', "");
        let legal = vdisks.contains('*') && example.is_empty()
            || VdiskId::new(&example).is_ok()
            || vdisks.starts_with('*') && VdiskId::new(&format!("x{example}")).is_ok();
        if !legal {
            return Err(PermissionRuleError::Vdisks { rule: rule.to_owned(), vdisks: vdisks.to_owned() });
        }
        Ok(Self { name: name.to_ascii_lowercase(), vdisks: vdisks.to_owned() })
    }
}

impl fmt::Display for PermissionRule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}={}", self.name, self.vdisks)
    }
}

/// Whether a text is what a pattern says, `*` for any run of characters.
///
/// Each star takes as little as it can. Where the rest does not fit, only the last star has to take more: whatever an earlier
/// one could give up, the later one can take.
fn fits(pattern: &str, text: &str) -> bool {
    let Some((first, rest)) = pattern.split_once('*') else { return pattern == text };
    let Some(mut text) = text.strip_prefix(first) else { return false };
    let Some((middle, last)) = rest.rsplit_once('*') else { return text.ends_with(rest) };
    for part in middle.split('*') {
        match text.split_once(part) {
            Some((_, after)) => text = after,
            None => return false,
        }
    }
    text.ends_with(last)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn permissions(rules: &[&str]) -> Permissions {
        Permissions::new(rules.iter().map(|rule| rule.parse().unwrap()).collect())
    }

    #[test]
    fn a_certificate_may_write_what_a_rule_permits_to_one_of_its_names() {
        let rules = permissions(&[
            "one.example.org=vda",
            "Two.Example.org=vm-*",
            "all=*",
            "one.example.org=old-*-disk",
        ]);
        let check = |names: &[&str], vdisk: &str, permitted: bool| {
            let vdisk = VdiskId::new(vdisk).unwrap();
            assert_eq!(rules.permit(names.iter().copied(), &vdisk), permitted, "{names:?} {vdisk}");
        };
        check(&["one.example.org"], "vda", true);
        check(&["ONE.example.org"], "vda", true);
        check(&["one.example.org"], "VDA", false);
        check(&["one.example.org"], "vdab", false);
        check(&["one.example.org"], "old-7-disk", true);
        check(&["one.example.org"], "old--disk", true);
        check(&["one.example.org"], "old-disk", false);
        check(&["one.example.org"], "vm-7", false);
        check(&["two.example.org"], "vm-7", true);
        check(&["three.example.org", "two.example.org"], "vm-", true);
        check(&["all"], "whatever", true);
        check(&["*.example.org"], "vda", false);
        check(&["*"], "vda", false);
        check(&["example.org"], "vda", false);
        check(&[], "vda", false);
    }

    #[test]
    fn without_rules_everybody_may_write_everything() {
        let vdisk = VdiskId::new("vda").unwrap();
        assert!(Permissions::default().permit([], &vdisk));
        assert!(!permissions(&["one=vdb"]).permit([], &vdisk));
    }

    #[test]
    fn what_is_no_rule_is_refused_with_what_is_expected() {
        let check = |text: &str, says: &str| {
            let error = text.parse::<PermissionRule>().unwrap_err().to_string();
            assert!(error.contains(says), "{text}: {error}");
        };
        check("", "write NAME=VDISK");
        check("vda", "write NAME=VDISK");
        check("=vda", "\"\" in the rule \"=vda\" is not a DNS name");
        check("*=vda", "is not a DNS name");
        check("*.example.org=vda", "is not a DNS name");
        check("a b=vda", "is not a DNS name");
        check("a=", "fits no vdisk");
        check("a=b=c", "\"b=c\" in the rule");
        check("a=-vda", "fits no vdisk");
        check("a=v da", "fits no vdisk");
        check("a=vm-?", "fits no vdisk");
        for (text, shown) in
            [(" A.b = * ", "a.b=*"), ("a=*-disk", "a=*-disk"), ("a=x*-", "a=x*-"), ("a=**", "a=**")]
        {
            assert_eq!(text.parse::<PermissionRule>().unwrap().to_string(), shown);
        }
    }

    /// Tries everything.
    fn slow_fits(pattern: &[u8], text: &[u8]) -> bool {
        match pattern.split_first() {
            None => text.is_empty(),
            Some((b'*', rest)) => (0..=text.len()).any(|taken| slow_fits(rest, &text[taken..])),
            Some((byte, rest)) => {
                text.split_first().is_some_and(|(first, text)| first == byte && slow_fits(rest, text))
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(4096))]

        #[test]
        fn a_pattern_fits_what_trying_everything_says(pattern in "[ab*]{0,8}", text in "[ab]{0,10}") {
            prop_assert_eq!(fits(&pattern, &text), slow_fits(pattern.as_bytes(), text.as_bytes()));
        }

        #[test]
        fn a_rule_is_read_back_from_what_it_shows(name in "[a-z]{1,8}(\\.[a-z]{1,8}){0,2}", vdisks in "[a-z*][a-z0-9*_.-]{0,9}") {
            if let Ok(rule) = format!("{name}={vdisks}").parse::<PermissionRule>() {
                prop_assert_eq!(rule.to_string().parse(), Ok(rule));
            }
        }

        #[test]
        fn no_text_makes_the_parser_panic(text in ".{0,40}") {
            let _ = text.parse::<PermissionRule>();
        }
    }
}
