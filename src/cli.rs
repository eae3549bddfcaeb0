//! The commands beside running a broker: what is sent to the admin socket, and how answers are printed.
#![expect(clippy::print_stdout, reason = "what these commands are for")]

use std::io::{self, BufRead, IsTerminal};
use std::process::ExitCode;

use serde::de::DeserializeOwned;
use serde_json::Value;
use stratamq::config::args::{ConnectionCommand, PermissionCommand, UserCommand, VhostCommand};
use stratamq::config::{Command, Config};
use stratamq::server::StartError;
use stratamq::server::admin::{self, AdminClientError, PermissionEntry, Request, UserEntry};
use stratamq::server::clients::ConnectionEntry;
use stratamq::server::status::Status;

/// Carries a command out and prints its answer.
pub(crate) fn run(config: &Config, command: Command) -> ExitCode {
    let outcome = match command {
        Command::Status { json } => status(config, json),
        Command::User(command) => user(config, command),
        Command::Permission(command) => permission(config, command),
        Command::Vhost(command) => vhost(config, command),
        Command::Connection(command) => connection(config, command),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(CliError::Admin(AdminClientError::Start(error))) => {
            let code = StartError::exit_code(&error);
            super::fail(&error.to_string(), code)
        }
        Err(error) => super::fail(&error.to_string(), 1),
    }
}

#[derive(Debug, thiserror::Error)]
enum CliError {
    #[error(transparent)]
    Admin(#[from] AdminClientError),
    #[error("cannot read the password from standard input: {0}")]
    Password(io::Error),
    #[error("the broker's answer cannot be read: {0}")]
    Answer(#[from] serde_json::Error),
}

fn status(config: &Config, json: bool) -> Result<(), CliError> {
    let value = admin::run_command(config, Request::Status)?;
    if json {
        println!("{value}");
    } else {
        let status: Status = serde_json::from_value(value)?;
        print!("{status}");
    }
    Ok(())
}

fn user(config: &Config, command: UserCommand) -> Result<(), CliError> {
    let request = match command {
        UserCommand::Add {
            name,
            password,
            tags,
        } => Request::AddUser {
            name,
            password: password_or_stdin(password)?,
            tags,
        },
        UserCommand::Delete { name } => Request::DeleteUser { name },
        UserCommand::SetPassword { name, password } => Request::SetPassword {
            name,
            password: password_or_stdin(password)?,
        },
        UserCommand::SetTags { name, tags } => Request::SetTags { name, tags },
        UserCommand::List { json } => {
            return list(config, Request::ListUsers, json, |user: &UserEntry| {
                format!("{}\t[{}]", user.name, user.tags.join(", "))
            });
        }
    };
    admin::run_command(config, request)?;
    Ok(())
}

fn permission(config: &Config, command: PermissionCommand) -> Result<(), CliError> {
    let request = match command {
        PermissionCommand::Set {
            user,
            configure,
            write,
            read,
            vhost,
        } => Request::SetPermissions {
            user,
            vhost,
            configure,
            write,
            read,
        },
        PermissionCommand::Clear { user, vhost } => Request::ClearPermissions { user, vhost },
        PermissionCommand::List { json } => {
            return list(
                config,
                Request::ListPermissions,
                json,
                |entry: &PermissionEntry| {
                    format!(
                        "{}\t{}\tconfigure '{}'\twrite '{}'\tread '{}'",
                        entry.vhost, entry.user, entry.configure, entry.write, entry.read
                    )
                },
            );
        }
    };
    admin::run_command(config, request)?;
    Ok(())
}

fn vhost(config: &Config, command: VhostCommand) -> Result<(), CliError> {
    let request = match command {
        VhostCommand::Add { name } => Request::AddVhost { name },
        VhostCommand::Delete { name } => Request::DeleteVhost { name },
        VhostCommand::List { json } => {
            return list(config, Request::ListVhosts, json, String::clone);
        }
    };
    admin::run_command(config, request)?;
    Ok(())
}

fn connection(config: &Config, command: ConnectionCommand) -> Result<(), CliError> {
    match command {
        ConnectionCommand::List { json } => {
            list(config, Request::ListConnections, json, connection_line)
        }
        ConnectionCommand::Close { id, reason } => {
            admin::run_command(config, Request::CloseConnection { id, reason })?;
            Ok(())
        }
    }
}

/// Names come from clients: what would move the cursor is escaped.
fn connection_line(entry: &ConnectionEntry) -> String {
    let name = entry.name.as_deref().unwrap_or_default().escape_debug();
    format!(
        "{}\t{}\t{}\t{}\t{}\t{}\t{}\t{name}",
        entry.id,
        entry.peer,
        entry.user.escape_debug(),
        entry.vhost.escape_debug(),
        entry.mechanism,
        entry.tls.as_deref().unwrap_or("-"),
        entry.client.escape_debug(),
    )
}

/// Prints a listing: one JSON document, or a line an entry.
fn list<T: DeserializeOwned>(
    config: &Config,
    request: Request,
    json: bool,
    line: impl Fn(&T) -> String,
) -> Result<(), CliError> {
    let value: Value = admin::run_command(config, request)?;
    if json {
        println!("{value}");
        return Ok(());
    }
    for entry in serde_json::from_value::<Vec<T>>(value)? {
        println!("{}", line(&entry));
    }
    Ok(())
}

fn password_or_stdin(password: Option<String>) -> Result<String, CliError> {
    if let Some(password) = password {
        return Ok(password);
    }
    if io::stdin().is_terminal() {
        eprint!("Password: ");
    }
    let mut line = String::new();
    io::stdin()
        .lock()
        .read_line(&mut line)
        .map_err(CliError::Password)?;
    Ok(line.trim_end_matches(['\r', '\n']).to_owned())
}
