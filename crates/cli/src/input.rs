//! What a command is given to read: a file, or standard input by the name `-`.

use std::io::Read as _;
use std::path::Path;

use crate::error::CliError;

/// The text of a file, or of standard input.
pub(crate) fn text(path: &Path) -> Result<String, CliError> {
    let mut text = String::new();
    let read = if path == Path::new("-") {
        std::io::stdin().read_to_string(&mut text).map(drop)
    } else {
        std::fs::read_to_string(path).map(|content| text = content)
    };
    match read {
        Ok(()) => Ok(text),
        Err(source) => Err(CliError::Read {
            path: path.to_owned(),
            source,
        }),
    }
}
