//! The commands beside running a broker: what is sent to the admin socket, and how answers are printed.
#![expect(clippy::print_stdout, reason = "what these commands are for")]

use std::io::{self, BufRead, IsTerminal};
use std::process::ExitCode;

use serde::de::DeserializeOwned;
use serde_json::Value;
use stratamq::config::commands::{
    ConnectionCommand, LimitCommand, LimitOwnerArgs, PermissionCommand, PolicyCommand,
    TopicPermissionCommand, UserCommand, VhostCommand,
};
use stratamq::config::{Command, Config};
use stratamq::server::StartError;
use stratamq::server::admin::{
    self, AdminClientError, LimitWire, PermissionEntry, PolicyWire, Request, TopicPermissionWire,
    UserEntry, VhostWire,
};
use stratamq::server::clients::ConnectionEntry;
use stratamq::server::status::Status;

/// Carries a command out and prints its answer.
pub(crate) fn run(config: &Config, command: Command) -> ExitCode {
    let outcome = match command {
        Command::Status { json } => status(config, json),
        Command::User(command) => user(config, command),
        Command::Permission(command) => permission(config, command),
        Command::Vhost(command) => vhost(config, command),
        Command::Policy(command) => policy(config, command, false),
        Command::OperatorPolicy(command) => policy(config, command, true),
        Command::TopicPermission(command) => topic_permission(config, command),
        Command::Limit(command) => limit(config, command),
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
        VhostCommand::Describe { json } => {
            return list(
                config,
                Request::DescribeVhosts,
                json,
                |vhost: &VhostWire| {
                    format!(
                        "{}\t'{}'\t[{}]\tdefault queue type {}\t{}",
                        vhost.name,
                        vhost.description,
                        vhost.tags.join(", "),
                        vhost.default_queue_type,
                        match vhost.protected_from_deletion {
                            true => "protected",
                            false => "not protected",
                        }
                    )
                },
            );
        }
        VhostCommand::Set {
            name,
            description,
            tags,
            default_queue_type,
            protected,
        } => Request::ChangeVhost {
            name,
            description,
            tags: (!tags.is_empty()).then_some(tags),
            default_queue_type,
            is_protected: protected,
        },
    };
    admin::run_command(config, request)?;
    Ok(())
}

fn policy(config: &Config, command: PolicyCommand, is_operator: bool) -> Result<(), CliError> {
    let request = match command {
        PolicyCommand::Set {
            name,
            pattern,
            definition,
            priority,
            apply_to,
            vhost,
        } => Request::SetPolicy {
            is_operator,
            vhost,
            name,
            pattern,
            definition,
            priority,
            apply_to,
        },
        PolicyCommand::Clear { name, vhost } => Request::ClearPolicy {
            is_operator,
            vhost,
            name,
        },
        PolicyCommand::List { json } => {
            let request = Request::ListPolicies { is_operator };
            return list(config, request, json, |policy: &PolicyWire| {
                format!(
                    "{}\t{}\tpattern '{}'\tapply to {}\tpriority {}\t{}",
                    policy.vhost,
                    policy.name,
                    policy.pattern,
                    policy.apply_to,
                    policy.priority,
                    policy.definition
                )
            });
        }
    };
    admin::run_command(config, request)?;
    Ok(())
}

fn topic_permission(config: &Config, command: TopicPermissionCommand) -> Result<(), CliError> {
    let request = match command {
        TopicPermissionCommand::Set {
            user,
            exchange,
            write,
            read,
            vhost,
        } => Request::SetTopicPermissions {
            user,
            vhost,
            exchange,
            write,
            read,
        },
        TopicPermissionCommand::Clear {
            user,
            exchange,
            vhost,
        } => Request::ClearTopicPermissions {
            user,
            vhost,
            exchange,
        },
        TopicPermissionCommand::List { json } => {
            let request = Request::ListTopicPermissions;
            return list(config, request, json, |entry: &TopicPermissionWire| {
                format!(
                    "{}\t{}\t{}\twrite '{}'\tread '{}'",
                    entry.vhost, entry.user, entry.exchange, entry.write, entry.read
                )
            });
        }
    };
    admin::run_command(config, request)?;
    Ok(())
}

fn limit(config: &Config, command: LimitCommand) -> Result<(), CliError> {
    let request = match command {
        LimitCommand::Set { owner, name, value } => {
            let (is_of_user, owner) = limit_owner(owner);
            Request::SetLimit {
                is_of_user,
                owner,
                name,
                value,
            }
        }
        LimitCommand::Clear { owner, name } => {
            let (is_of_user, owner) = limit_owner(owner);
            Request::ClearLimit {
                is_of_user,
                owner,
                name,
            }
        }
        LimitCommand::List { json } => {
            return list(config, Request::ListLimits, json, |limit: &LimitWire| {
                format!(
                    "{} '{}'\t{}\t{}",
                    limit.of, limit.owner, limit.name, limit.value
                )
            });
        }
    };
    admin::run_command(config, request)?;
    Ok(())
}

/// Whether it is of a user, and whose it is; the command line has exactly one of both.
fn limit_owner(owner: LimitOwnerArgs) -> (bool, String) {
    match (owner.user, owner.vhost) {
        (Some(user), _) => (true, user),
        (None, vhost) => (false, vhost.unwrap_or_default()),
    }
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
