//! One message on its way through the broker: what each step costs, how it came to that, and what is left.
//!
//! There is no code here. The figures are instructions in user space for a message, from callgrind over
//! `benches/instructions.rs` (64 messages a read, one thread, the real disk, a build without link-time optimisation, in which
//! functions can be told apart; the release build needs about three quarters of them). Instructions do not depend on how busy the
//! machine is; `tools/compare-instructions` compares two commits by them. What the kernel does is not in them: see below.
//!
//! # The way
//!
//! ```text
//!   socket    session                     broker                        store                 session      socket
//!   recv ---> Session::receive ---------> Connection::publish --------> Storage::push
//!             whole publishes, in place   route, queue, hand-over         records, one lock
//!                                           |                           commit thread:
//!                                           |                             direct write, fdatasync
//!                                           v                             |  wakes who waits
//!                                         Outbox ---- run of deliveries ------------------> handle_items ---> send
//!                                                                         `-> basic.ack (confirm), multiple
//!             basic.ack --------------->  settle ---------------------> SETTLE record, one a queue
//! ```
//!
//! | step | transient, 16 B, taken without ack | durable, 1 KiB, confirmed and acked |
//! |---|---|---|
//! | bytes to messages (`Session::receive`) | 937 | 2,047 |
//! | - of these: the frames, read where they lie (`amqp::raw_publish`) | 276 | 276 |
//! | - the message: one head, one copy, CRC of what is durable (`Message::from_raw`) | 470 | 1,433 |
//! | checks and route (`Connection::publish` without what follows) | 122 | 159 |
//! | into the queue and out again (`QueueState::enqueue`) | 578 | 931 |
//! | into the log (`Storage::push`) | | 1,135 |
//! | the rest of a critical section (positions, receipts, outbox) | 127 | 492 |
//! | commit: gathered into one aligned buffer, written (`Storage::step`) | 48 | 1,452 |
//! | outbox to bytes (`Session::handle_items`) | 693 | 951 |
//! | acknowledgement (`queue::settle`) | | 544 |
//! | the message's end: two blocks of memory | 150 | in the settle |
//! | all | 2,911 | 9,188 |
//!
//! Before this work began the two sums were 11,121 and 17,334.
//!
//! # How it came to that
//!
//! Instructions per message of the transient case, unless something else is said, before and after each step alone or with
//! those before it:
//!
//! - **Whole publishes are read in place** (`session::publishes`, `amqp::raw_publish`): 11,124 to 5,553. Three frames were split
//!   off, shared and decoded one by one, and the message shared its own head five times. Now names, properties and body are
//!   copied once into the head; a frame that repeats that of the publish before is recognised by a comparison. Everything
//!   incomplete, unusual or wrong goes frame by frame, so that no error has two sources.
//! - **A message has no place where nothing waits** (`queue::dispatch`): the broker's part 2,168 to 655. It goes from the
//!   publisher's batch into the consumer's outbox; only its number is used up. One that is acknowledged gets its place written
//!   once, in the state it will have.
//! - **Deliveries are encoded in runs** (`session::deliveries`): 1,790 to 698. Channel and consumer are looked up once a run, the
//!   length of all three frames is known before the first byte is written, and output grows in segments that are never moved.
//! - **One thread serves sockets on two cores** (`--net-threads`, half of the processors): 1.3 times the messages per processor
//!   second at 16 B, 1.4 to 1.6 times at 1 KiB, with the broker of that time. With two, each message moved between two caches,
//!   and tasks woke each other through the kernel.
//! - **The log is written past the system's cache, with zeros ahead** (`storage::block_writer`): a commit of 4 KiB takes 127 us
//!   instead of 368 and 52 us of processor time instead of 165; one of 52 KiB 158 us instead of 439. A page that has to be
//!   found, filled and written back costs more than the transfer, and a sync behind a write into new blocks waits for the file
//!   system's journal as well.
//! - **No read that must fail**: half of all reads of sockets returned `EAGAIN`. A read that did not fill its room is the last one
//!   until the kernel reports more.
//! - **Idle connections give everything back**: 17,465 to 6,939 bytes each. The output's first buffer stayed for ever, and the
//!   table of channels began with room for eleven.
//!
//! # Tried and thrown away
//!
//! | idea | figure | why not |
//! |---|---|---|
//! | `fallocate` alone, without zeros ahead | 300 us for a commit of 4 KiB, against 127 | blocks that were never written still need the journal |
//! | zeros ahead through the cache | 215 us, and 3.4 ms on average at 512 KiB | every zero is a page |
//! | `RWF_DSYNC` in place of a write and `fdatasync` | 141 us against 141 | nothing gained, and two paths |
//! | giving buffers back by a timer only | 11,985 B a connection | who logs in and rests holds 8 KiB until it rings |
//! | fat link-time optimisation, one codegen unit | 5 % fewer instructions | each program is then built on one processor, for minutes |
//! | every list of deliveries changes hands with an empty outbox | not measured | the larger list is freed and made again; now only when the new one is larger |
//!
//! # What is left
//!
//! - Two blocks of memory for a message, head and handle. One would save a pair of calls to the allocator, but a payload of
//!   several parts is a list of `Bytes` today.
//! - Every delivery and every acknowledgement holds its queue: two atomic operations each. Runs of (queue, consumer, numbers)
//!   from the session on would need none.
//! - A durable body is copied three times between the sockets: into the message, into the batch, into the aligned buffer. The
//!   last one falls away when batches are built in aligned memory.
//! - A message with another place than the one before copies its names to compare them next time.
//! - A cold backlog: half of the cost is the readers' copy out of the system's cache and the hand-over between threads.
//! - The kernel: at 1 KiB, moving the bytes through two sockets is most of what a transient message costs. The stand-in of
//!   `strata-bench limit`, which does nothing else, shows where the end is.
//!
//! # To see it
//!
//! ```sh
//! tools/compare-instructions main~20 main    # by instructions, on any machine
//! strata-bench goals                         # every goal beside its figure, medians of interleaved rounds; a quiet machine
//! strata-bench limit                         # each load beside what only moves the same bytes, and the disk's bare commits
//! strata-bench sweep --svg costs.svg         # against connections, queues, bindings, backlog and body size
//! ```
