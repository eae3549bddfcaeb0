//! The broker's binary: reads arguments, starts logging, runs the broker or an admin command, and maps the
//! outcome to an exit code: 0 done, 1 failure, 2 usage or configuration, 3 damaged data.

mod cli;

use std::process::ExitCode;

use stratamq::config::{Args, Config, args};
use stratamq::disk::small_file;
use stratamq::server;
use stratamq::telemetry;

/// Usage or configuration.
const EXIT_USAGE: u8 = 2;

fn main() -> ExitCode {
    let args = match args::parse(small_file::read_text) {
        Ok(args) => args,
        Err(text) => return fail(&text, EXIT_USAGE),
    };
    let config = match Config::from_args(&args.server, args.data_dir.clone()) {
        Ok(config) => config,
        Err(error) => return fail(&error.to_string(), EXIT_USAGE),
    };
    if args.print_config {
        return print(&args.effective);
    }
    match args.command {
        Some(command) => cli::run(&config, command),
        None => serve(&config, &args),
    }
}

#[expect(clippy::print_stdout, reason = "what --print-config is for")]
fn print(text: &str) -> ExitCode {
    print!("{text}");
    ExitCode::SUCCESS
}

fn serve(config: &Config, args: &Args) -> ExitCode {
    if let Err(text) = telemetry::start(&args.server.log) {
        return fail(&text, EXIT_USAGE);
    }
    match server::run(config) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => fail(&error.to_string(), error.exit_code()),
    }
}

fn fail(text: &str, code: u8) -> ExitCode {
    eprintln!("stratamq: {text}");
    ExitCode::from(code)
}
