//! What the program says: results on standard output, everything else on standard error, colours only on a terminal.

use std::ffi::OsStr;
use std::io::{self, Write};
use std::path::Path;

use anstream::AutoStream;
use anstyle::{AnsiColor, Style};
use comfy_table::{Table, presets};
use serde::Serialize;
use tulle_runtime::trace;

use crate::error::CliError;

/// Name of the program.
const NAME: &str = "tulle";

const ERROR: Style = AnsiColor::Red.on_default().bold();
const NEXT: Style = AnsiColor::Cyan.on_default();
const WARNING: Style = AnsiColor::Yellow.on_default();

/// Writes a result as it is.
pub(crate) fn bytes(bytes: &[u8]) -> Result<(), CliError> {
    written(
        io::stdout()
            .lock()
            .write_all(bytes)
            .and_then(|()| io::stdout().flush()),
    )
}

/// Writes lines of a result that have styles, which only a terminal gets to see.
pub(crate) fn styled(text: &str) -> Result<(), CliError> {
    let mut stdout = anstream::stdout().lock();
    written(writeln!(stdout, "{text}").and_then(|()| stdout.flush()))
}

/// As YAML.
pub(crate) fn yaml(result: &impl Serialize) -> Result<String, CliError> {
    serde_saphyr::to_string(result).map_err(|error| CliError::Render(Box::new(error)))
}

/// As one document of several in YAML.
pub(crate) fn document(document: &impl Serialize) -> Result<String, CliError> {
    Ok(format!("---\n{}\n", yaml(document)?.trim_end()))
}

fn written(result: io::Result<()>) -> Result<(), CliError> {
    match result {
        // Whoever read the output has seen enough, as `head` does.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        result => result.map_err(CliError::Write),
    }
}

/// Writes one line of a result.
pub(crate) fn line(line: &impl std::fmt::Display) -> Result<(), CliError> {
    bytes(format!("{line}\n").as_bytes())
}

/// Rows under a header, aligned as `kubectl` does.
pub(crate) fn aligned<const N: usize>(
    header: [&str; N],
    rows: impl IntoIterator<Item = [String; N]>,
) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    table.set_header(header);
    for row in rows {
        table.add_row(row);
    }
    for column in table.column_iter_mut() {
        column.set_padding((0, 2));
    }
    table.trim_fmt()
}

/// Says why a command ended early, with all causes, and what to do next.
pub(crate) fn error(error: &CliError) {
    let text = format!(
        "{ERROR}error{ERROR:#}: {}\n{NEXT}next{NEXT:#}:  {}",
        chain(error),
        error.next_step()
    );
    match error {
        CliError::Control(_) | CliError::Agent(_) => last_word(&text),
        _ => note(&text),
    }
}

/// As [`note`], at the end of a program that serves: it does not stay because nobody reads why it goes.
fn last_word(text: &str) {
    let choice = AutoStream::choice(&io::stderr());
    let mut styled = AutoStream::new(Vec::new(), choice);
    let _ = write!(styled, "{text}");
    trace::last_word(&String::from_utf8_lossy(&styled.into_inner()));
}

/// Says something that an operator should know although the command goes on.
pub(crate) fn warning(text: &str) {
    note(&format!("{WARNING}warning{WARNING:#}: {text}"));
}

/// Says what was done; styles are for a terminal only.
pub(crate) fn note(text: &str) {
    // Where this cannot be said, nothing can.
    let _ = writeln!(anstream::stderr().lock(), "{text}");
}

/// How this program is called in a shell: by its name if that finds it, else by its path.
pub(crate) fn program() -> String {
    let Ok(this) = std::env::current_exe() else {
        return NAME.to_owned();
    };
    call_of(&this, std::env::var_os("PATH").unwrap_or_default())
}

fn call_of(this: &Path, search: impl AsRef<OsStr>) -> String {
    let found = std::env::split_paths(&search)
        .map(|directory| directory.join(NAME))
        .find(|file| file.is_file());
    if found.and_then(|file| file.canonicalize().ok()) == this.canonicalize().ok() {
        return NAME.to_owned();
    }
    let path = this.display().to_string();
    let plain = |character: char| character.is_alphanumeric() || "/._-+@".contains(character);
    if path.chars().all(plain) {
        path
    } else {
        format!("'{}'", path.replace('\'', r"'\''"))
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_aligned() {
        let rows = [
            ["a".to_owned(), "b".to_owned()],
            ["longer".to_owned(), "c".to_owned()],
        ];
        assert_eq!(aligned(["X", "Y"], rows), "X       Y\na       b\nlonger  c");
    }

    #[test]
    fn the_program_is_called_by_name_only_where_that_finds_it() {
        let directory = tempfile::tempdir().expect("a directory");
        let (own, other) = (directory.path().join("a b"), directory.path().join("c"));
        for folder in [&own, &other] {
            std::fs::create_dir(folder).expect("a folder");
            std::fs::write(folder.join(NAME), "").expect("a file");
        }
        let this = own.join(NAME);
        assert_eq!(call_of(&this, &own), "tulle");
        let path = format!("'{}'", this.display());
        assert_eq!(call_of(&this, &other), path);
        assert_eq!(call_of(&this, ""), path);
        let plain = other.join(NAME);
        assert_eq!(call_of(&plain, &own), plain.display().to_string());
    }
}
