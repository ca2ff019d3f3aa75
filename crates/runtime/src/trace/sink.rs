//! Where the lines of the log go: straight to standard error, or to the thread that writes there.

use std::backtrace::{Backtrace, BacktraceStatus};
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::AsFd as _;
use std::panic::PanicHookInfo;
use std::sync::OnceLock;
use std::time::Duration;

use prometheus_client::registry::Registry;
use tracing_subscriber::fmt::MakeWriter;

use crate::writer::Writer;

/// Bytes of lines that may wait: some thousand lines, so that a reader may pause for a moment.
const WAITING: usize = 1 << 20;
/// How long the end of a program waits for a reader.
const PATIENCE: Duration = Duration::from_secs(1);
/// How long a panic does, twice: it may be the last that the process says, and must not hold up for long who goes on.
const PANIC_PATIENCE: Duration = Duration::from_millis(50);

/// The thread of this process, which is as unique as its standard error.
static WRITER: OnceLock<Writer> = OnceLock::new();

/// Takes lines.
#[derive(Debug)]
pub(super) struct Sink(Option<Writer>);

impl Sink {
    /// Whoever has a line writes it.
    pub(super) fn direct() -> Self {
        Self(None)
    }

    /// A thread writes the lines.
    pub(super) fn queued() -> io::Result<Self> {
        // Not the locked handle, which a write that hangs would keep.
        let stderr = File::from(io::stderr().as_fd().try_clone_to_owned()?);
        let gap = |lines| {
            tracing::warn!(
                lines,
                "lines were dropped here, because the log was not read fast enough"
            );
        };
        Ok(Self(Some(Writer::new("log", stderr, WAITING, gap)?)))
    }

    pub(super) fn written(&self) -> Written {
        Written(self.0.clone())
    }
}

impl<'a> MakeWriter<'a> for Sink {
    type Writer = Line<'a>;

    fn make_writer(&'a self) -> Line<'a> {
        Line(self.0.as_ref())
    }
}

/// Takes one line, in one piece.
#[derive(Debug)]
pub(super) struct Line<'a>(Option<&'a Writer>);

impl Write for Line<'_> {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.write_all(line).map(|()| line.len())
    }

    fn write_all(&mut self, line: &[u8]) -> io::Result<()> {
        match self.0 {
            Some(writer) => writer.write(line.to_vec(), 1),
            None => io::stderr().write_all(line)?,
        }
        Ok(())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Dropping it waits, a second at most, until the lines are written that the program has logged so far.
#[derive(Debug)]
#[must_use = "the last lines are lost unless this lives as long as the program"]
pub struct Written(Option<Writer>);

impl Written {
    /// This is the log of the process from now on: panics are told there, too, because whoever panics must not wait for
    /// ever either. He does wait a moment: a panic while another one unwinds ends the process.
    pub(super) fn take_panics(&self) {
        let Some(writer) = self.0.clone() else { return };
        if WRITER.set(writer.clone()).is_ok() {
            std::panic::set_hook(Box::new(move |panic| {
                // There may be no room for it yet.
                writer.flush(PANIC_PATIENCE);
                writer.write(told(panic), 1);
                writer.flush(PANIC_PATIENCE);
            }));
        }
    }
}

impl Drop for Written {
    fn drop(&mut self) {
        if let Some(writer) = &self.0 {
            writer.flush(PATIENCE);
        }
    }
}

/// Registers how many lines of the program's log were dropped.
pub fn register(registry: &mut Registry) {
    let dropped = WRITER.get().map(Writer::dropped);
    registry.register(
        "log_lines_dropped",
        "Lines of the program's own log that were dropped, because they were not read fast enough",
        dropped.cloned().unwrap_or_default(),
    );
}

/// Says on standard error why the program ends, after everything that it has logged. Waits a second at most for a reader.
pub fn last_word(word: &str) {
    let word = format!("{word}\n").into_bytes();
    let writer = WRITER.get().cloned();
    let writer = writer.or_else(|| Sink::queued().ok()?.0);
    match writer {
        Some(writer) => {
            writer.write(word, 1);
            writer.flush(PATIENCE);
        }
        // Where there can be no thread there is nobody to wait for.
        None => drop(io::stderr().write_all(&word)),
    }
}

/// Ends the process, but not before the lines of its log are written.
pub fn exit(status: i32) -> ! {
    if let Some(writer) = WRITER.get() {
        writer.flush(PATIENCE);
    }
    std::process::exit(status)
}

/// A panic, in the words of the standard library.
fn told(panic: &PanicHookInfo<'_>) -> Vec<u8> {
    let thread = std::thread::current();
    let name = thread.name().unwrap_or("<unnamed>");
    let mut told = format!("\nthread '{name}' {panic}\n");
    // Asked for with RUST_BACKTRACE.
    let trace = Backtrace::capture();
    if trace.status() == BacktraceStatus::Captured {
        told = format!("{told}stack backtrace:\n{trace}\n");
    }
    told.into_bytes()
}

#[cfg(test)]
mod tests;
