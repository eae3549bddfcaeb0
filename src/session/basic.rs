//! Class basic from the client: consumers, get, acknowledgements, prefetch.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

use super::acks::AckScope;
use super::channel::{Awaiting, Mode};
use super::close::Failure;
use super::dispatch::Handled;
use super::event::Event;
use super::{Session, Work};
use crate::amqp::method::{MethodId, basic};
use crate::amqp::reply_code::{ChannelReplyCode, ConnectionReplyCode};
use crate::amqp::short_string::ShortString;
use crate::broker::command::{Command, Consume, SettleOutcome};

/// What spreads the generated tags over all 128 bits: odd, so no two of them are equal.
const TAG_STEP: u128 = 0x9e37_79b9_7f4a_7c15_f39c_c060_5ced_c835;

impl Session {
    pub(super) fn consume(&mut self, id: u16, method: basic::Consume) -> Handled {
        let tag = match method.consumer_tag.is_empty() {
            true => self.generate_tag(),
            false => method.consumer_tag.detached(),
        };
        let consumers_max = self.options.channel_consumers_max;
        let channel = self.channel(id)?;
        if channel.consumers.id(&tag).is_some() {
            let text = format!("attempt to reuse consumer tag '{tag}'");
            return Err(Failure::connection(
                ConnectionReplyCode::NotAllowed,
                text,
                basic::Consume::ID,
            ));
        }
        if let Some(max) = consumers_max
            && channel.consumers.count() as u64 >= max
        {
            let text = format!("reached maximum ({max}) of consumers per channel");
            return Err(Failure::connection(
                ConnectionReplyCode::NotAllowed,
                text,
                basic::Consume::ID,
            ));
        }
        let prefetch = channel.prefetch;
        let command = Command::Consume(Consume {
            queue: self.queue_name(id, method.queue, basic::Consume::ID)?,
            tag: tag.clone(),
            is_no_ack: method.no_ack,
            is_exclusive: method.exclusive,
            prefetch,
            arguments: method.arguments.detached(),
        });
        let awaiting = Awaiting::Consume {
            tag,
            is_nowait: method.nowait,
        };
        self.ask(id, basic::Consume::ID, command, awaiting);
        Ok(())
    }

    /// `amq.ctag-` and 22 characters.
    fn generate_tag(&mut self) -> ShortString {
        self.tag_count += 1;
        let number = self
            .options
            .tag_seed
            .wrapping_add(self.tag_count.wrapping_mul(TAG_STEP));
        let tag = format!("amq.ctag-{}", URL_SAFE_NO_PAD.encode(number.to_be_bytes()));
        ShortString::from_text_cut(&tag)
    }

    pub(super) fn cancel(&mut self, id: u16, method: basic::Cancel) -> Handled {
        let consumer = self.channel(id)?.consumers.id(&method.consumer_tag);
        let consumer_tag = method.consumer_tag;
        let Some(consumer) = consumer else {
            if !method.nowait {
                self.send(id, basic::CancelOk { consumer_tag });
            }
            return Ok(());
        };
        let awaiting = Awaiting::Cancel {
            consumer,
            tag: consumer_tag.detached(),
            is_nowait: method.nowait,
        };
        self.ask(
            id,
            basic::Cancel::ID,
            Command::Cancel { consumer },
            awaiting,
        );
        Ok(())
    }

    pub(super) fn get(&mut self, id: u16, method: basic::Get) -> Handled {
        let command = Command::Get {
            queue: self.queue_name(id, method.queue, basic::Get::ID)?,
            is_no_ack: method.no_ack,
        };
        self.ask(id, basic::Get::ID, command, Awaiting::Get);
        Ok(())
    }

    pub(super) fn qos(&mut self, id: u16, method: &basic::Qos) -> Handled {
        if method.prefetch_size != 0 {
            let text = format!("prefetch_size!=0 ({})", method.prefetch_size);
            return Err(Failure::connection(
                ConnectionReplyCode::NotImplemented,
                text,
                basic::Qos::ID,
            ));
        }
        let count = method.prefetch_count;
        if method.global {
            let ok = Awaiting::Ok(Some(basic::QosOk {}.into()));
            self.ask(id, basic::Qos::ID, Command::ChannelPrefetch { count }, ok);
        } else {
            self.channel(id)?.prefetch = count;
            self.send(id, basic::QosOk {});
        }
        Ok(())
    }

    pub(super) fn ack(&mut self, id: u16, method: &basic::Ack) -> Handled {
        let scope = AckScope::new(method.delivery_tag, method.multiple);
        self.settle(id, scope, SettleOutcome::Ack, basic::Ack::ID)
    }

    pub(super) fn nack(&mut self, id: u16, method: &basic::Nack) -> Handled {
        let scope = AckScope::new(method.delivery_tag, method.multiple);
        let outcome = refusal(method.requeue, SettleOutcome::Return);
        self.settle(id, scope, outcome, basic::Nack::ID)
    }

    pub(super) fn reject(&mut self, id: u16, method: &basic::Reject) -> Handled {
        let scope = AckScope::One(method.delivery_tag);
        let outcome = refusal(method.requeue, SettleOutcome::Requeue);
        self.settle(id, scope, outcome, basic::Reject::ID)
    }

    pub(super) fn recover(&mut self, id: u16, method: &basic::Recover) -> Handled {
        check_recover(method.requeue, basic::Recover::ID)?;
        self.settle_now(id, AckScope::All, SettleOutcome::Return, basic::Recover::ID)?;
        self.send(id, basic::RecoverOk {});
        Ok(())
    }

    pub(super) fn recover_async(&mut self, id: u16, method: &basic::RecoverAsync) -> Handled {
        check_recover(method.requeue, basic::RecoverAsync::ID)?;
        self.settle_now(
            id,
            AckScope::All,
            SettleOutcome::Return,
            basic::RecoverAsync::ID,
        )
    }

    /// Settles now, or with the commit on a transactional channel.
    fn settle(
        &mut self,
        id: u16,
        scope: AckScope,
        outcome: SettleOutcome,
        method: MethodId,
    ) -> Handled {
        let channel = self.channel(id)?;
        let is_revocable = matches!(channel.mode, Mode::Tx(_));
        let left = channel.ages.left_of(scope, &channel.tags, is_revocable);
        let Some(scope) = left else {
            return Ok(());
        };
        let Mode::Tx(transaction) = &mut channel.mode else {
            return self.settle_now(id, scope, outcome, method);
        };
        let mut items = Vec::new();
        let taken = channel
            .tags
            .take(scope, |run| items.push(run.outstanding()));
        taken.map_err(|tag| unknown_tag(tag.0, method))?;
        if !items.is_empty() {
            transaction.settlements.push((outcome, items));
        }
        Ok(())
    }

    fn settle_now(
        &mut self,
        id: u16,
        scope: AckScope,
        outcome: SettleOutcome,
        method: MethodId,
    ) -> Handled {
        let Some(channel) = self.channels.get_mut(&id) else {
            return Ok(());
        };
        // One command for all acks that come one after the other: the broker takes each queue's lock
        // and writes to the log once for them.
        if let (SettleOutcome::Ack, Some(Work::Event(event))) = (outcome, self.work.back_mut())
            && let Event::Command {
                channel: other,
                command,
            } = event
            && let Command::Settle {
                items,
                outcome: SettleOutcome::Ack,
            } = command
            && *other == id
        {
            let taken = channel.tags.take(scope, |run| run.join(items));
            return taken.map_err(|tag| unknown_tag(tag.0, method));
        }
        let mut items = Vec::new();
        let taken = channel.tags.take(scope, |run| run.join(&mut items));
        taken.map_err(|tag| unknown_tag(tag.0, method))?;
        if !items.is_empty() {
            channel.unneeded_answer_count += 1;
            let command = Command::Settle { items, outcome };
            self.work.push_back(Work::Event(Event::Command {
                channel: id,
                command,
            }));
        }
        Ok(())
    }
}

fn refusal(is_requeue: bool, requeue: SettleOutcome) -> SettleOutcome {
    match is_requeue {
        true => requeue,
        false => SettleOutcome::Reject,
    }
}

fn check_recover(is_requeue: bool, method: MethodId) -> Handled {
    match is_requeue {
        true => Ok(()),
        false => {
            let code = ConnectionReplyCode::NotImplemented;
            Err(Failure::connection(code, "requeue=false", method))
        }
    }
}

fn unknown_tag(tag: u64, method: MethodId) -> Failure {
    let text = format!("unknown delivery tag {tag}");
    Failure::channel(ChannelReplyCode::PreconditionFailed, text, method)
}
