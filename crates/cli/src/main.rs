//! The tulle program.

fn main() -> std::process::ExitCode {
    tulle_cli::main()
}
