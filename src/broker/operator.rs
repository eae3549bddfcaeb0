//! Carries out what an operator asks: every change under `meta`, logged, effective at once.

use std::sync::Arc;

use super::access::{Account, PasswordHash, Pattern, Permissions};
use super::admin::{
    AdminCommand, AdminError, AdminReply, AdminReplyBody, PermissionsRow, QueueRow, UserRow,
};
use super::effects::Effects;
use super::facade::{Broker, Shared};
use super::meta::{Change, PermissionsNameV1, UserNameV1, VhostV1};
use super::meta_log::MetaLog;
use super::queue::{self, DeleteCondition, QueueHandle};
use super::records;
use super::vhost::Removed;
use crate::amqp::limits::SHORT_STRING_MAX_BYTES;
use crate::storage::types::Lsn;
use crate::sync::{lock, read, write};

pub(super) type Outcome = Result<Option<Lsn>, AdminError>;

impl Broker {
    /// Carries out one command of an operator.
    ///
    /// # Errors
    /// Why it was refused; nothing was changed then.
    pub fn admin(
        &self,
        command: AdminCommand,
        now_ms: u64,
        effects: &mut Effects,
    ) -> Result<AdminReply, AdminError> {
        let shared = &*self.shared;
        let durable_at = match command {
            AdminCommand::ListUsers => return Ok(listing(shared.users())),
            AdminCommand::ListPermissions { vhost } => {
                return Ok(listing(shared.permissions(vhost.as_deref())?));
            }
            AdminCommand::ListVhosts => return Ok(listing(shared.vhost_names())),
            AdminCommand::ListQueues => return Ok(listing(shared.queue_rows())),
            AdminCommand::ListPolicies { is_operator } => {
                return Ok(listing(shared.policies(is_operator)));
            }
            AdminCommand::ListTopicPermissions => {
                return Ok(listing(shared.topic_permissions()));
            }
            AdminCommand::ListLimits => return Ok(listing(shared.limits())),
            AdminCommand::DescribeVhosts => return Ok(listing(shared.vhost_entries())),
            AdminCommand::AddUser {
                name,
                password,
                tags,
            } => shared.add_user(&name, &password, tags, effects),
            AdminCommand::DeleteUser { name } => shared.delete_user(&name, effects),
            AdminCommand::SetPassword { name, password } => {
                let password = PasswordHash::new(&password);
                shared.change_user(&name, effects, |account| account.password = password)
            }
            AdminCommand::SetTags { name, tags } => {
                shared.change_user(&name, effects, |account| account.tags = tags)
            }
            AdminCommand::SetPermissions {
                user,
                vhost,
                configure,
                write,
                read,
            } => {
                let permissions = Permissions {
                    configure: pattern(&configure)?,
                    write: pattern(&write)?,
                    read: pattern(&read)?,
                };
                shared.set_permissions(&user, &vhost, permissions, effects)
            }
            AdminCommand::ClearPermissions { user, vhost } => {
                shared.clear_permissions(&user, &vhost, effects)
            }
            AdminCommand::AddVhost { name } => shared.create_vhost(&name, effects),
            AdminCommand::DeleteVhost { name } => shared.delete_vhost(&name, now_ms, effects),
            AdminCommand::ChangeVhost { name, change } => {
                shared.change_vhost(&name, change, effects)
            }
            AdminCommand::SetPolicy {
                is_operator,
                policy,
            } => shared.set_policy(&policy, is_operator, now_ms, effects),
            AdminCommand::ClearPolicy {
                is_operator,
                vhost,
                name,
            } => shared.clear_policy(&vhost, &name, is_operator, now_ms, effects),
            AdminCommand::SetTopicPermissions(entry) => {
                shared.set_topic_permissions(&entry, effects)
            }
            AdminCommand::ClearTopicPermissions {
                user,
                vhost,
                exchange,
            } => shared.clear_topic_permissions(&user, &vhost, exchange.as_deref(), effects),
            AdminCommand::SetLimit(entry) => shared.set_limit(&entry, effects),
            AdminCommand::ClearLimit { owner, name } => shared.clear_limit(&owner, &name, effects),
        }?;
        Ok(AdminReply {
            body: AdminReplyBody::Done,
            durable_at,
        })
    }
}

fn listing(body: AdminReplyBody) -> AdminReply {
    AdminReply {
        body,
        durable_at: None,
    }
}

pub(super) fn check_name(name: &str) -> Result<(), AdminError> {
    if (1..=SHORT_STRING_MAX_BYTES).contains(&name.len()) {
        return Ok(());
    }
    Err(AdminError::BadName)
}

fn pattern(text: &str) -> Result<Pattern, AdminError> {
    Pattern::new(text).map_err(|error| AdminError::BadPattern {
        pattern: text.to_owned(),
        reason: error,
    })
}

impl Shared {
    fn add_user(
        &self,
        name: &str,
        password: &[u8],
        tags: Vec<String>,
        effects: &mut Effects,
    ) -> Outcome {
        check_name(name)?;
        let password = PasswordHash::new(password);
        let account = Account { password, tags };
        let mut meta = lock(&self.meta);
        if read(&self.access).accounts.contains_key(name) {
            return Err(AdminError::UserExists(name.to_owned()));
        }
        let change = Change::UserSet(records::user(name, &account));
        let durable_at = self.push(&mut meta, &[change], effects);
        self.change_access(|access| access.accounts.insert(name.to_owned(), account));
        Ok(durable_at)
    }

    fn change_user(
        &self,
        name: &str,
        effects: &mut Effects,
        change: impl FnOnce(&mut Account),
    ) -> Outcome {
        let mut meta = lock(&self.meta);
        let mut account = self.account(name)?;
        change(&mut account);
        let record = Change::UserSet(records::user(name, &account));
        let durable_at = self.push(&mut meta, &[record], effects);
        self.change_access(|access| access.accounts.insert(name.to_owned(), account));
        Ok(durable_at)
    }

    fn delete_user(&self, name: &str, effects: &mut Effects) -> Outcome {
        let mut meta = lock(&self.meta);
        if self.account(name)?.is_protected() {
            return Err(AdminError::UserProtected(name.to_owned()));
        }
        let user = UserNameV1 {
            name: name.to_owned(),
        };
        let durable_at = self.push(&mut meta, &[Change::UserDeleted(user)], effects);
        self.change_access(|access| access.remove_user(name));
        self.close_user(name, &format!("user '{name}' is deleted"), effects);
        Ok(durable_at)
    }

    /// A copy of a user's account; called under `meta`, so nobody changes it meanwhile.
    pub(super) fn account(&self, name: &str) -> Result<Account, AdminError> {
        let account = read(&self.access).accounts.get(name).cloned();
        account.ok_or_else(|| AdminError::NoSuchUser(name.to_owned()))
    }

    fn check_vhost(&self, name: &str) -> Result<(), AdminError> {
        let vhost = self.vhost(name);
        vhost
            .map(|_| ())
            .ok_or_else(|| AdminError::NoSuchVhost(name.to_owned()))
    }

    fn set_permissions(
        &self,
        user: &str,
        vhost: &str,
        permissions: Permissions,
        effects: &mut Effects,
    ) -> Outcome {
        let mut meta = lock(&self.meta);
        self.account(user)?;
        self.check_vhost(vhost)?;
        let record = records::permissions(vhost, user, &permissions);
        let durable_at = self.push(&mut meta, &[Change::PermissionsSet(record)], effects);
        let key = (vhost.to_owned(), user.to_owned());
        self.change_access(|access| access.permissions.insert(key, Arc::new(permissions)));
        Ok(durable_at)
    }

    fn clear_permissions(&self, user: &str, vhost: &str, effects: &mut Effects) -> Outcome {
        let mut meta = lock(&self.meta);
        self.account(user)?;
        self.check_vhost(vhost)?;
        let key = (vhost.to_owned(), user.to_owned());
        if !read(&self.access).permissions.contains_key(&key) {
            return Ok(None);
        }
        let name = PermissionsNameV1 {
            vhost: vhost.to_owned(),
            user: user.to_owned(),
        };
        let durable_at = self.push(&mut meta, &[Change::PermissionsCleared(name)], effects);
        self.change_access(|access| access.permissions.remove(&key));
        Ok(durable_at)
    }

    fn create_vhost(&self, name: &str, effects: &mut Effects) -> Outcome {
        check_name(name)?;
        let mut meta = lock(&self.meta);
        if self.vhost(name).is_some() {
            return Err(AdminError::VhostExists(name.to_owned()));
        }
        if let Some(max_count) = self.options.vhost_max_count
            && read(&self.vhosts).len() as u64 >= max_count
        {
            return Err(AdminError::Invalid(format!(
                "cannot create vhost '{name}': vhost limit of {max_count} is reached"
            )));
        }
        let vhost = VhostV1 {
            name: name.to_owned(),
        };
        let durable_at = self.push(&mut meta, &[Change::VhostAdded(vhost)], effects);
        self.add_vhost(name);
        Ok(durable_at)
    }

    /// Closes the connections and deletes everything in the vhost. The first record says all of it, so a crash leaves the
    /// whole vhost or nothing of it:
    ///
    /// ```text
    /// t1 VhostDeleted, t2 QueueDeleted of each queue under its lock, t3 all durable: the operator is told
    /// crash before t1 is durable -> the vhost is there; after it -> nothing of it is, and queues whose own record is
    /// missing are dropped when the broker is restored, since nothing declares them
    /// ```
    fn delete_vhost(&self, name: &str, now_ms: u64, effects: &mut Effects) -> Outcome {
        let mut meta = lock(&self.meta);
        let no_vhost = || AdminError::NoSuchVhost(name.to_owned());
        let vhost = self.vhost(name).ok_or_else(no_vhost)?;
        if vhost.settings().is_protected {
            return Err(AdminError::VhostProtected(name.to_owned()));
        }
        // From here on nobody can open it, and who did before is in the register and gets closed.
        write(&self.vhosts).remove(name);
        self.close_vhost(name, &format!("vhost '{name}' is deleted"), effects);
        let mut topology = vhost.write();
        topology.is_deleted = true;
        let deleted = Change::VhostDeleted(VhostV1 {
            name: name.to_owned(),
        });
        self.push(&mut meta, &[deleted], effects);
        let queues = topology.queues().chain(topology.delay_queues());
        let queues: Vec<QueueHandle> = queues.cloned().collect();
        for queue in &queues {
            self.drop_queue(&mut meta, queue, now_ms, effects);
        }
        topology.clear();
        drop(topology);
        self.change_access(|access| access.remove_vhost(name));
        Ok(self.unless_durable(Some(meta.last_lsn())))
    }

    /// Deletes the delay queues of exchanges that are gone; what to wait for, if anything.
    ///
    /// A crash between the record of the exchange and the one of its delay queue leaves a delay queue without its exchange,
    /// which is dropped when the broker is restored.
    pub(super) fn drop_delay_queues(
        &self,
        meta: &mut MetaLog,
        removed: &Removed,
        now_ms: u64,
        effects: &mut Effects,
    ) -> Option<Lsn> {
        let mut durable_at = None;
        for queue in &removed.delay_queues {
            self.drop_queue(meta, queue, now_ms, effects);
            if queue.spec().is_durable {
                effects.wakes_commit = true;
                durable_at = self.unless_durable(Some(meta.last_lsn()));
            }
        }
        durable_at
    }

    /// Deletes a queue of a vhost that goes as a whole, or with its exchange.
    fn drop_queue(
        &self,
        meta: &mut MetaLog,
        queue: &QueueHandle,
        now_ms: u64,
        effects: &mut Effects,
    ) {
        let changes = records::queue_deleted(queue, &Removed::default());
        let condition = DeleteCondition::default();
        let turn = &mut self.turn(now_ms, effects);
        // Nobody else deletes while `meta` is held, and the condition is empty: it is not refused.
        let _ = queue::delete(turn, queue, condition, || {
            meta.push(self.queues.journal(), &changes);
        });
        meta.durable_queues.remove(&queue.id());
    }

    fn users(&self) -> AdminReplyBody {
        let access = read(&self.access);
        let rows = access.accounts.iter().map(|(name, account)| UserRow {
            name: name.clone(),
            tags: account.tags.clone(),
        });
        AdminReplyBody::Users(rows.collect())
    }

    fn permissions(&self, of: Option<&str>) -> Result<AdminReplyBody, AdminError> {
        if let Some(vhost) = of {
            self.check_vhost(vhost)?;
        }
        let access = read(&self.access);
        let is_meant = |vhost: &str| of.is_none_or(|of| of == vhost);
        let entries = access.permissions.iter();
        let rows = entries.filter(|((vhost, _), _)| is_meant(vhost)).map(
            |((vhost, user), permissions)| PermissionsRow {
                vhost: vhost.clone(),
                user: user.clone(),
                configure: permissions.configure.text().to_owned(),
                write: permissions.write.text().to_owned(),
                read: permissions.read.text().to_owned(),
            },
        );
        Ok(AdminReplyBody::Permissions(rows.collect()))
    }

    fn vhost_names(&self) -> AdminReplyBody {
        let vhosts = read(&self.vhosts);
        let mut names: Vec<String> = vhosts.keys().map(ToString::to_string).collect();
        names.sort_unstable();
        AdminReplyBody::Vhosts(names)
    }

    fn queue_rows(&self) -> AdminReplyBody {
        // Copied first: counting takes each queue's lock, which nobody should wait for under this one.
        let vhosts: Vec<_> = read(&self.vhosts).values().cloned().collect();
        let queues = vhosts.iter().flat_map(|vhost| {
            let topology = vhost.read();
            let queues = topology.queues().chain(topology.delay_queues());
            queues.cloned().collect::<Vec<QueueHandle>>()
        });
        let mut rows: Vec<QueueRow> = queues.map(|queue| queue_row(&queue)).collect();
        rows.sort_unstable_by(|left, right| {
            (&left.vhost, &left.name).cmp(&(&right.vhost, &right.name))
        });
        AdminReplyBody::Queues(rows)
    }
}

fn queue_row(queue: &QueueHandle) -> QueueRow {
    let (spec, stats) = (queue.spec(), queue.stats());
    QueueRow {
        vhost: spec.vhost.to_string(),
        name: spec.name.as_str().to_owned(),
        id: spec.id.0,
        is_durable: spec.is_durable,
        ready_count: stats.ready_count,
        unacked_count: stats.unacked_count,
        quarantined_count: stats.quarantined_count,
        consumer_count: u64::from(stats.consumer_count),
    }
}
