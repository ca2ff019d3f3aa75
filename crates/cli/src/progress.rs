//! What is being done, for a person who waits: one line that is gone when it is done, and nothing at all where nobody watches.

use std::io::{self, IsTerminal as _, Write};

/// Erases the line that the cursor is in, and goes to its beginning.
const ERASE: &str = "\r\x1b[K";
/// A line that is longer would be broken, and not erased.
const WIDEST: usize = 78;

/// The line.
#[derive(Debug)]
pub(crate) struct Progress<W: Write = io::Stderr> {
    /// Absent where nobody watches.
    terminal: Option<W>,
    shown: bool,
}

impl Progress {
    /// On standard error, if that is a terminal.
    pub(crate) fn new() -> Self {
        let stderr = io::stderr();
        Self::on(stderr.is_terminal().then_some(stderr))
    }
}

impl<W: Write> Progress<W> {
    fn on(terminal: Option<W>) -> Self {
        Self {
            terminal,
            shown: false,
        }
    }

    /// Says what is done now, in place of what was.
    pub(crate) fn says(&mut self, what: &str) {
        let line: String = what.chars().take(WIDEST).collect();
        self.write(&format!("{ERASE}{line}..."));
        self.shown = true;
    }

    /// Makes room for what is to stay.
    pub(crate) fn clear(&mut self) {
        if std::mem::take(&mut self.shown) {
            self.write(ERASE);
        }
    }

    fn write(&mut self, text: &str) {
        if let Some(terminal) = &mut self.terminal {
            // Whoever cannot see it misses nothing that stays.
            let _ = terminal
                .write_all(text.as_bytes())
                .and_then(|()| terminal.flush());
        }
    }
}

impl<W: Write> Drop for Progress<W> {
    fn drop(&mut self) {
        self.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_line_says_what_is_done_now_and_is_gone_at_the_end() {
        let mut seen = Vec::new();
        let mut progress = Progress::on(Some(&mut seen));
        progress.says("one");
        progress.says(&"x".repeat(100));
        progress.clear();
        progress.clear();
        progress.says("two");
        drop(progress);
        let long = "x".repeat(WIDEST);
        let expected = format!("{ERASE}one...{ERASE}{long}...{ERASE}{ERASE}two...{ERASE}");
        assert_eq!(String::from_utf8(seen).expect("text"), expected);
    }

    #[test]
    fn nothing_is_written_where_nobody_watches() {
        let mut progress = Progress::<Vec<u8>>::on(None);
        progress.says("one");
        assert!(progress.terminal.is_none());
    }
}
