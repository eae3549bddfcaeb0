//! The commands beside running a broker, as typed. The doc comments are the `--help`.
//!
//! One enum a noun (`user`, `permission`, `vhost`, ..), one variant a verb; what they do is in `cli`.

use clap::Subcommand;

/// Commands beside running a broker.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Show what the running broker does
    Status {
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Add, delete and list users, set passwords and tags
    #[command(subcommand)]
    User(UserCommand),
    /// Set, clear and list what users may do in a vhost
    #[command(subcommand)]
    Permission(PermissionCommand),
    /// Add, delete and list virtual hosts, and say what they are for
    #[command(subcommand)]
    Vhost(VhostCommand),
    /// Set, clear and list policies: settings for queues and exchanges by the pattern of their names
    #[command(subcommand)]
    Policy(PolicyCommand),
    /// Set, clear and list operator policies, which limit what policies and arguments ask for
    #[command(subcommand)]
    OperatorPolicy(PolicyCommand),
    /// Set, clear and list which routing keys users may use with topic exchanges
    #[command(subcommand)]
    TopicPermission(TopicPermissionCommand),
    /// Set, clear and list limits of users and virtual hosts
    #[command(subcommand)]
    Limit(LimitCommand),
    /// List the connections of clients, and close one
    #[command(subcommand)]
    Connection(ConnectionCommand),
}

/// `stratamq user`.
#[derive(Debug, Subcommand)]
pub enum UserCommand {
    /// Add a user; it may do nothing until `permission set`
    Add {
        /// Name of the user
        name: String,
        /// The password; read from standard input (one line) when absent
        #[arg(long, env = "STRATAMQ_USER_PASSWORD", hide_env_values = true)]
        password: Option<String>,
        /// Tag, for example administrator; may be given more than once
        #[arg(long = "tag", value_name = "TAG")]
        tags: Vec<String>,
    },
    /// Delete a user and close its connections
    Delete {
        /// Name of the user
        name: String,
    },
    /// Change a user's password
    SetPassword {
        /// Name of the user
        name: String,
        /// The password; read from standard input (one line) when absent
        #[arg(long, env = "STRATAMQ_USER_PASSWORD", hide_env_values = true)]
        password: Option<String>,
    },
    /// Replace a user's tags
    SetTags {
        /// Name of the user
        name: String,
        /// The tags; none removes all
        tags: Vec<String>,
    },
    /// List users and their tags
    List {
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
}

/// `stratamq permission`.
#[derive(Debug, Subcommand)]
pub enum PermissionCommand {
    /// Allow a user to work in a vhost; each pattern is a regular expression matched anywhere in the
    /// name, and an empty one matches nothing
    Set {
        /// Name of the user
        user: String,
        /// Which queues and exchanges it may declare and delete
        configure: String,
        /// Where it may publish and bind to
        write: String,
        /// What it may consume from and bind from
        read: String,
        /// The virtual host
        #[arg(long, default_value = "/")]
        vhost: String,
    },
    /// Take a user's access to a vhost away
    Clear {
        /// Name of the user
        user: String,
        /// The virtual host
        #[arg(long, default_value = "/")]
        vhost: String,
    },
    /// List all permissions
    List {
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
}

/// `stratamq vhost`.
#[derive(Debug, Subcommand)]
pub enum VhostCommand {
    /// Add a virtual host with its predeclared exchanges
    Add {
        /// Name of the virtual host
        name: String,
    },
    /// Delete a virtual host and everything in it, and close its connections
    Delete {
        /// Name of the virtual host
        name: String,
    },
    /// List virtual hosts
    List {
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// List virtual hosts with their descriptions, tags, default queue types and protection
    Describe {
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Change what is said about a virtual host; what is not given stays
    Set {
        /// Name of the virtual host
        name: String,
        /// What it is for
        #[arg(long, value_name = "TEXT")]
        description: Option<String>,
        /// Tag; may be given more than once, and replaces all that were there
        #[arg(long = "tag", value_name = "TAG")]
        tags: Vec<String>,
        /// Type of the queues that are declared without one
        #[arg(long, value_name = "TYPE")]
        default_queue_type: Option<String>,
        /// Whether it is protected from deletion
        #[arg(long, value_name = "BOOL")]
        protected: Option<bool>,
    },
}

/// `stratamq policy` and `stratamq operator-policy`.
#[derive(Debug, Subcommand)]
pub enum PolicyCommand {
    /// Add or replace a policy; it holds at once, also for what is there
    Set {
        /// Name of the policy
        name: String,
        /// Regular expression, matched anywhere in the names of queues and exchanges
        pattern: String,
        /// JSON object, for example '{"max-length": 1000, "dead-letter-exchange": "dlx"}'
        definition: String,
        /// Of the policies that match, the one of the highest priority applies
        #[arg(
            long,
            default_value_t = 0,
            value_name = "N",
            allow_negative_numbers = true
        )]
        priority: i64,
        /// all, queues, classic_queues, quorum_queues, streams or exchanges
        #[arg(long, default_value = "all", value_name = "WHAT")]
        apply_to: String,
        /// The virtual host
        #[arg(long, default_value = "/")]
        vhost: String,
    },
    /// Take a policy away
    Clear {
        /// Name of the policy
        name: String,
        /// The virtual host
        #[arg(long, default_value = "/")]
        vhost: String,
    },
    /// List the policies of all virtual hosts
    List {
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
}

/// `stratamq topic-permission`.
#[derive(Debug, Subcommand)]
pub enum TopicPermissionCommand {
    /// Allow a user only some routing keys of a topic exchange; in the patterns {username} and {vhost} stand
    /// for the names
    Set {
        /// Name of the user
        user: String,
        /// Name of the topic exchange
        exchange: String,
        /// Which keys it may publish with
        write: String,
        /// Which keys it may bind with
        read: String,
        /// The virtual host
        #[arg(long, default_value = "/")]
        vhost: String,
    },
    /// Allow a user all routing keys again
    Clear {
        /// Name of the user
        user: String,
        /// Name of the topic exchange; all of them when absent
        exchange: Option<String>,
        /// The virtual host
        #[arg(long, default_value = "/")]
        vhost: String,
    },
    /// List all topic permissions
    List {
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
}

/// Whose limit it is.
#[derive(Debug, clap::Args)]
#[group(required = true, multiple = false)]
pub struct LimitOwnerArgs {
    /// Limit a virtual host: max-connections, max-queues
    #[arg(long, value_name = "NAME")]
    pub vhost: Option<String>,
    /// Limit a user: max-connections, max-channels
    #[arg(long, value_name = "NAME")]
    pub user: Option<String>,
}

/// `stratamq limit`.
#[derive(Debug, Subcommand)]
pub enum LimitCommand {
    /// Set a limit; what exceeds it already stays
    Set {
        /// Whose.
        #[command(flatten)]
        owner: LimitOwnerArgs,
        /// max-connections, max-queues or max-channels
        name: String,
        /// How many; 0 allows none, a negative number is no limit
        #[arg(allow_negative_numbers = true)]
        value: i64,
    },
    /// Take a limit away
    Clear {
        /// Whose.
        #[command(flatten)]
        owner: LimitOwnerArgs,
        /// max-connections, max-queues or max-channels
        name: String,
    },
    /// List all limits
    List {
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
}

/// `stratamq connection`.
#[derive(Debug, Subcommand)]
pub enum ConnectionCommand {
    /// List the open connections
    List {
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Close a connection: its client is told 320 CONNECTION_FORCED and the reason
    Close {
        /// Number of the connection, from the list
        id: u64,
        /// What the client is told
        #[arg(default_value = "closed by the operator")]
        reason: String,
    },
}
