//! What the program says: results on standard output, everything else on standard error, colours only on a terminal.

use std::io::{self, Write};

use anstyle::{AnsiColor, Style};

use crate::error::CliError;

const ERROR: Style = AnsiColor::Red.on_default().bold();
const NEXT: Style = AnsiColor::Cyan.on_default();
const WARNING: Style = AnsiColor::Yellow.on_default();

/// Writes a result as it is.
pub(crate) fn bytes(bytes: &[u8]) -> Result<(), CliError> {
    match io::stdout()
        .lock()
        .write_all(bytes)
        .and_then(|()| io::stdout().flush())
    {
        // Whoever read the output has seen enough, as `head` does.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        result => result.map_err(CliError::Write),
    }
}

/// Writes one line of a result.
pub(crate) fn line(line: &impl std::fmt::Display) -> Result<(), CliError> {
    bytes(format!("{line}\n").as_bytes())
}

/// Says why a command ended early, with all causes, and what to do next.
pub(crate) fn error(error: &CliError) {
    anstream::eprintln!("{ERROR}error{ERROR:#}: {}", chain(error));
    anstream::eprintln!("{NEXT}next{NEXT:#}:  {}", error.next_step());
}

/// Says something that an operator should know although the command goes on.
pub(crate) fn warning(text: &str) {
    anstream::eprintln!("{WARNING}warning{WARNING:#}: {text}");
}

/// Says what was done.
pub(crate) fn note(text: &str) {
    anstream::eprintln!("{text}");
}

/// An error with its causes on one line. Control characters of foreign text are escaped.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let line = error.to_string();
        if !text.ends_with(&line) {
            text.push_str(": ");
            text.push_str(&line);
        }
        cause = error.source();
    }
    text
}
