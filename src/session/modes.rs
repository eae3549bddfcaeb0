//! Classes confirm and tx: the two modes of a channel.

use super::Session;
use super::channel::{Awaiting, Mode, PendingCommit, Transaction};
use super::close::Failure;
use super::confirms::Confirms;
use super::dispatch::Handled;
use crate::amqp::method::{MethodId, confirm, tx};
use crate::amqp::reply_code::ChannelReplyCode;
use crate::broker::command::Command;

impl Session {
    pub(super) fn confirm_select(&mut self, id: u16, method: &confirm::Select) -> Handled {
        let channel = self.channel(id)?;
        let unasked_count = channel.unanswered_publish_count;
        match &mut channel.mode {
            Mode::Plain => channel.mode = Mode::Confirm(Confirms::after(unasked_count)),
            Mode::Confirm(_) => {}
            Mode::Tx(_) => {
                return Err(misuse(
                    "cannot switch from tx to confirm mode",
                    confirm::Select::ID,
                ));
            }
        }
        if !method.nowait {
            self.send(id, confirm::SelectOk {});
        }
        Ok(())
    }

    pub(super) fn tx_select(&mut self, id: u16) -> Handled {
        let mode = &mut self.channel(id)?.mode;
        match mode {
            Mode::Plain => *mode = Mode::Tx(Transaction::default()),
            Mode::Tx(_) => {}
            Mode::Confirm(_) => {
                return Err(misuse(
                    "cannot switch from confirm to tx mode",
                    tx::Select::ID,
                ));
            }
        }
        self.send(id, tx::SelectOk {});
        Ok(())
    }

    pub(super) fn tx_commit(&mut self, id: u16) -> Handled {
        let transaction = self.take_transaction(id, tx::Commit::ID)?;
        let mut settled = Vec::new();
        let mut settlements = Vec::with_capacity(transaction.settlements.len());
        for (outcome, items) in transaction.settlements {
            settlements.push((
                outcome,
                items.iter().map(|(_, item)| item.clone()).collect(),
            ));
            settled.extend(items);
        }
        let command = Command::TxCommit {
            publish_count: transaction.publish_count,
            settlements,
        };
        let pending = PendingCommit {
            mandatory: transaction.mandatory,
            settled,
        };
        self.ask(id, tx::Commit::ID, command, Awaiting::Commit(pending));
        Ok(())
    }

    pub(super) fn tx_rollback(&mut self, id: u16) -> Handled {
        let transaction = self.take_transaction(id, tx::Rollback::ID)?;
        self.channel(id)?.tags.restore(transaction.into_settled());
        let ok = Awaiting::Ok(Some(tx::RollbackOk {}.into()));
        self.ask(id, tx::Rollback::ID, Command::TxRollback, ok);
        Ok(())
    }

    /// The open transaction; the next one begins.
    fn take_transaction(&mut self, id: u16, method: MethodId) -> Result<Transaction, Failure> {
        match &mut self.channel(id)?.mode {
            Mode::Tx(transaction) => Ok(std::mem::take(transaction)),
            Mode::Plain | Mode::Confirm(_) => Err(misuse("channel is not transactional", method)),
        }
    }
}

fn misuse(text: &str, method: MethodId) -> Failure {
    Failure::channel(ChannelReplyCode::PreconditionFailed, text, method)
}
