//! Errors as a person reads them.

/// An error and what caused it, in one line. A cause whose words stand there already is not told again: some errors show their
/// source themselves, because a log line shows nothing else of them.
pub fn of_error(error: &anyhow::Error) -> String {
    let mut told = String::new();
    for cause in error.chain() {
        let words = cause.to_string();
        if told.contains(&words) {
            continue;
        }
        if !told.is_empty() {
            told.push_str(": ");
        }
        told.push_str(&words);
    }
    told
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("the file cannot be read: {0}")]
    struct Shows(#[source] std::io::Error);

    #[test]
    fn a_cause_is_told_once() {
        let check = |error: anyhow::Error, told: &str| assert_eq!(of_error(&error), told);
        check(Shows(std::io::Error::other("gone")).into(), "the file cannot be read: gone");
        check(anyhow::anyhow!("gone").context("not recorded"), "not recorded: gone");
        let error = anyhow::Error::from(Shows(std::io::Error::other("gone")));
        check(error.context("not recorded"), "not recorded: the file cannot be read: gone");
    }
}
