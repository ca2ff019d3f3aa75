//! Errors in one line.

use std::error::Error;

/// An error and what caused it, each after a colon: for logs, and for whoever reads an answer.
#[must_use]
pub fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("the file cannot be read")]
    struct Unread(#[source] io::Error);

    #[test]
    fn every_cause_is_in_the_line() {
        let why = io::Error::other("the disk is gone");
        assert_eq!(chain(&why), "the disk is gone");
        assert_eq!(
            chain(&Unread(why)),
            "the file cannot be read: the disk is gone"
        );
    }
}
