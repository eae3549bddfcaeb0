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
//! | bytes to messages (`Session::receive`) | 817 | 1,706 |
//! | - of these: the frames, read where they lie (`amqp::raw_publish`) | 266 | 266 |
//! | - the message: one head, one copy, CRC of what is durable (`Message::from_raw`) | 372 | 1,222 |
//! | checks and route (`Connection::publish` without what follows) | 187 | 218 |
//! | into the queue and out again (`QueueState::enqueue`) | 418 | 707 |
//! | into the log (`Storage::push`) | | 606 |
//! | the rest of a critical section (positions, receipts, outbox) | 78 | 396 |
//! | commit: written from where it lies (`Storage::step`) | | 307 |
//! | outbox to bytes (`Session::handle_items`) | 683 | 942 |
//! | acknowledgement (`queue::settle`) | | 262 |
//! | the message's end: two blocks of memory | 123 | in the settle |
//! | all, with what the bench itself needs to look at deliveries | 2,548 | 6,549 |
//!
//! Before this work began the two sums were 11,121 and 17,334.
//!
//! The table is from before bodies were looked at ahead of their copies (`cache_line`), heads of deliveries were shared by a run, and
//! contents left with their delivery. Since then the sums are 2,468 and 6,839: the looks take some 150 instructions for each of two
//! copies of 1 KiB, and give back more time than they cost, which instructions do not show. With publishes made from the one before,
//! short messages in one block and deliveries that follow each other in one item they are 1,618 and 6,131. The release build, with
//! link-time optimisation and with all of what is below, needs 1,154 and 5,309.
//!
//! # Where the processor's time goes
//!
//! Microseconds a message of 1 KiB takes of the broker's processors, release build, two cores with the generator on them, medians of
//! four to six rounds; before is the build before reads became wide, on another day (the last row is of that day, too):
//!
//! | load | user | kernel | before |
//! |---|---|---|---|
//! | transient, taken without ack | 0.50 | 0.54 | 0.89 and 1.27 |
//! | durable, window 1000 | 1.26 | 0.91 | 1.55 and 1.20 |
//! | durable, window 100 | 1.96 | 2.32 | 2.03 and 2.51 |
//! | durable, window 1000, 1,000 queues | 2.31 | 1.73 | 2.53 and 2.03 |
//!
//! In the kernel it is TCP between two sockets, the segments' arrival at the client included, which runs on the sender's account;
//! for durable messages also the pinning of pages and the kick of the disk's queue, in the commit thread (a quarter of the whole).
//! In user space nothing stands out any more: copying is 7 to 8 % of the whole, CRC 2.5 %, no function of the broker above 2 %.
//!
//! # How it came to that
//!
//! Instructions per message of the transient case, unless something else is said, before and after each step alone or with
//! those before it:
//!
//! - **Whole publishes are read in place** (`session::publishes`, `amqp::raw_publish`): 11,124 to 5,553. Three frames were
//!   split off, shared and decoded one by one, and the message shared its own head five times. Now names, properties and body
//!   are copied once into the head; a frame that repeats that of the publish before is recognised by a comparison. Everything
//!   incomplete, unusual or wrong goes frame by frame, so that no error has two sources.
//! - **A message has no place where nothing waits** (`queue::dispatch`): the broker's part 2,168 to 655. It goes from the
//!   publisher's batch into the consumer's outbox; only its number is used up. One that is acknowledged gets its place written
//!   once, in the state it will have.
//! - **Deliveries are encoded in runs** (`session::deliveries`): 1,790 to 698. Channel and consumer are looked up once a run,
//!   the length of all three frames is known before the first byte is written, and output grows in segments that are never
//!   moved.
//! - **One thread serves sockets on two cores** (`--net-threads`, half of the processors): 1.3 times the messages per
//!   processor second at 16 B, 1.4 to 1.6 times at 1 KiB, with the broker of that time. With two, each message moved between
//!   two caches, and tasks woke each other through the kernel.
//! - **The log is written past the system's cache, with zeros ahead** (`storage::block_writer`): a commit of 4 KiB takes 127
//!   us instead of 368 and 52 us of processor time instead of 165; one of 52 KiB 158 us instead of 439. A page that has to be
//!   found, filled and written back costs more than the transfer, and a sync behind a write into new blocks waits for the file
//!   system's journal as well.
//! - **Reads of 224 KiB and writes of 256 KiB** (`server::connection::reading`, `buffers`): kernel time of a message of 1 KiB
//!   1.26 to 0.71 us, together with the next point. Each read tells the client that there is room and wakes it, and each part
//!   of a write wakes a consumer. The buffers belong to the thread, so a thousand busy connections do not have a thousand of
//!   them.
//! - **No pacing between sockets of one machine** (`server::pacing`): where BBR is the system's default, its timers took 10 to
//!   20 % of the processor time of a message of 1 KiB. The stand-in goes the same way, so the ratio to the limit does not gain
//!   by it.
//! - **What needs no alignment of its own is allocated the short way** (`allocator`): about 240 instructions for each of two
//!   or three blocks of a message, 4,455 to 4,227 at 1 KiB.
//! - **Acknowledgements settle as runs** (`session::acks`, `broker::queue::settle`): a run of numbers of one queue and
//!   consumer is one unit from the delivery tags to the record in the log, and holds its queue once.
//! - **Large bodies share a write and a sync**: one of 1 MiB was a write, another of its last block, and a sync of its own.
//! - **A large frame is read to its end, into a buffer of its own** (`server::connection::reading`): the broker's own part of a
//!   body of 1 MiB 403 to 328 us. Its parts were copied once or twice while the buffer grew.
//! - **Wake-ups wait for all rounds that are ready** (`server::wakes`): ten publishers at a window of 100 each sent 49 times for
//!   1,000 deliveries, now 28; 40 reads became 28, 7.7 commits 5.4. Each publisher woke the commit thread and the consumers by
//!   itself, and the runtime ran the one woken last before the next publisher. Part of it is that a client whose window is
//!   shorter than a wide read is read wide as well.
//! - **Records are written from where they lie in a batch** (`storage::block_buffer`): durable 1 KiB 7,614 to 6,549 instructions,
//!   a backlog published 6,469 to 5,367, the log's part alone 1,850 to 829. The commit thread copied each batch into an aligned buffer, out of the other core's cache.
//! - **A long batch lies in a large page** (`storage::block_buffer`), one of a few that are used again until the idle log
//!   is marked: of a backlog published the commit thread 0.416 to 0.362 us a message, all of it 2.13 to 1.98 (a busy machine, a
//!   build without link-time optimisation); pinning pages 1.9 to 0.7 % of the time. With one spare batch only, others began with a page to be
//!   cleared, 4.7 % of the time. At a window of 100 it changes nothing that can be measured.
//! - **A commit names no file and clears no room**: one for each message 42,189 to 35,453 instructions. A path was put together twice
//!   a commit in case the disk refuses; since batches lie as in the file, up to a block of zeros was written before each; and an acknowledgement of
//!   all up to a tag looked at each settled place before it in a call of its own.
//! - **The commit thread dozes behind a commit**: acknowledgements alone woke it to see that there was time; 2.7 futex calls for
//!   a window of 100 became 2.0.
//! - **A long read is one large page that its messages are slices of** (`storage::read_pages`): kernel time of a read past the cache
//!   0.09 us a KiB into pages of 4 KiB, 0.03 into one of 2 MiB; through the cache 0.11. With lookups once a run and the starts of
//!   cold messages fetched side by side, a cold drain went from 6,170 to 4,565 instructions, 0.55 to 0.89 M messages per processor
//!   second.
//! - **Bodies are looked at, line by line, before they are copied** (`cache_line`), sixteen together: copying with those looks takes
//!   14.7 % of the time of ten pairs of large windows, 19.2 % before; 13.3 and 15.6 % with one pair, 9.5 and 14.4 % in a cold drain.
//!   The processor had waited for each line of a body.
//! - **A name that is empty is not compared** (`broker::route_cache`): `memcmp` 2.6 to 0.3 % of the time round a thousand queues,
//!   1.6 to 0.6 % with ten pairs. The default exchange's name points to no memory, and a masked load of no bytes from there takes the
//!   processor hundreds of cycles.
//! - **A logged message leaves memory with its delivery** (`queue::content`), not with its acknowledgement, when the caches have
//!   forgotten it: ten pairs at a window of 1,000 each 1.92 to 1.63 us in user space, 0.349 to 0.382 M messages per processor
//!   second (medians of alternating runs).
//! - **Cold records are looked at whole before their checksums** (`storage::gather`), not only their starts: a cold drain 0.62 to
//!   0.77 M messages per processor second, six alternating rounds, a build without link-time optimisation.
//! - **Less to do for each message of a drain**: headers of records are read word by word, what stands before a body is encoded once
//!   a run (`amqp::content::DeliverRun`), and messages are looked at together before a queue serves them: 1.37 to 1.24 us a message
//!   of a cold drain, all three together, median of three alternating rounds of the same build.
//! - **Deliveries that follow each other are one item of the outbox** (`broker::outbox::items`): queue, consumer and marks are said
//!   once for a run, tags are given to a run, and nobody holds a queue for each message. 2,468 to 2,340 instructions, durable 1 KiB 6,839
//!   to 6,466, a fan-out to five queues 13,899 to 12,336; about 50 and 150 a delivery of these were the bench's, which looked at messages
//!   twice. 16 B without ack 3.03 to 3.14 M messages per processor second, medians of four alternating rounds.
//! - **A busy log keeps the files that it takes** (`storage::pool`): with four spares it removed and made four of eight segments between
//!   two checkpoints, and where the file system tells the device at once what it no longer needs, each removal holds up the writes of
//!   all for 13 ms. Bodies of 1 MiB 819 to 958 a second, medians of four alternating rounds.
//! - **Long parts of a batch are gathered in a large page** (`storage::block_writer`): bodies of 1 MiB 1,083 to 1,442 a second, 0.85 to
//!   0.66 ms of processor time each, medians of four alternating rounds. Pages of 4 KiB were looked up one by one, by the copy as well.
//! - **Bodies of 64 KiB are read wide** (`server::connection::reading`): 45 to 35 us of processor time each, medians of three alternating
//!   rounds. Such a frame is a few bytes longer than a narrow read, so each took two reads, and each read woke the client.
//! - **A publish that repeats the one before is made from it** (`amqp::raw_publish`, `Message::with_body`): 2,468 to 2,109, durable
//!   1 KiB 6,839 to 6,444. All that stands in front of the body is recognised by one comparison instead of three looks, and copied
//!   in one piece; lists of 512 publishes change hands.
//! - **A short message is one block of memory** (`message::stored`): 2,109 to 1,783. A head of up to 62 bytes, body included, lies in
//!   the message, which is no larger for it. At 1 KiB, where it is a branch for each look, 6,444 to 6,557.
//! - **Messages join their run together** (`broker::publish`): 1,679 to 1,618, durable 1 KiB 6,248 to 6,131.
//! - **Messages that arrive together are handed over together** (`queue::dispatch`) where a queue has one consumer: it is picked, its
//!   credit taken and its outbox looked at once for up to 16 KiB. 2,340 to 1,680 instructions, durable 1 KiB 6,466 to 5,791, together
//!   with publishes that repeat the one before.
//! - **Less to do for one message of a queue**: round a thousand queues 12,292 to 11,410 instructions (a build without link-time
//!   optimisation; one queue 7,601 to 7,436), 0.379 to 0.475 M messages per processor second, 429 to 536 thousand a second (medians of
//!   five alternating rounds, a busy machine). Of these 485 in the session: a delivery finds its consumer behind the one before, where
//!   it was looked up in a hash table twice (`session::channel`), and carries no head of 600 bytes that only runs use. A route is one
//!   comparison of both names (`broker::route_cache`); one acknowledged message ends without loops over ranges (`queue::slots`); a
//!   queue with nothing unusual about it ends a critical section at once; lists get room for all queues of it.
//! - **What waits goes to an only consumer as a run** (`queue::serve`), and **all that a drain has to send lies in buffers of the
//!   thread** (`session::output`, `server::connection::buffers`), not only its first 256 KiB, so that nobody clears pages for the
//!   rest: 1.41 to 1.14 us a message of a cold drain, both together, medians of four alternating rounds, a build without
//!   link-time optimisation; `dispatch` 2.9 to 0.7 % of the time, faults of pages 2.6 to 1.3 %.
//! - **Publishes go to their queues by value** (`broker::publish::run`), and outcomes that follow each other are one: transient 16 B
//!   1,252 to 1,190 instructions, 1 KiB 3,211 to 3,145 (a build of the bench without link-time optimisation). A run held each
//!   message beside the list that it came from. Moving them one by one with a look at each had cost as much as that: 1,311.
//! - **No read that must fail**: half of all reads of sockets returned `EAGAIN`. A read that did not fill its room is the last
//!   one until the kernel reports more.
//! - **Idle connections give everything back**: 17,465 to 6,939 bytes each. The output's first buffer stayed for ever, and the
//!   table of channels began with room for eleven.
//! - **A message stays where it was read** (`session::slices`, `server::read_buffers`): ten pairs at a window of 1,000 2.54 to 2.37 us a
//!   message, one pair 1.83 to 1.75, medians of four alternating rounds of a build without link-time optimisation on a busy machine;
//!   round by round, nine together, 12 % less for both. Each body was copied from a warm buffer into a block of memory
//!   that was not in the cache. The peak of memory is the same within 4 MiB, as the blocks fall away. Only wide reads do it, so the
//!   benches by instructions do not see it.
//! - **Messages of a mixed run go to their queues together** (`broker::queue::group`), and a queue that comes back in it is counted once,
//!   so that a group round ten queues is 230 messages and not 64: ten pairs 0.497 to 0.560 M messages per processor second, 555 to 603
//!   thousand a second, medians of eight alternating rounds, ahead in seven; round a thousand queues 0.465 to 0.497 M, of six rounds,
//!   ahead in four (a build without link-time optimisation).
//! - **A run numbers its sets of targets** (`broker::publish::target_sets`), and a group gathers its messages by these numbers, by value:
//!   ten pairs 0.428 to 0.487 M messages per processor second, medians of six alternating rounds, ahead in all of them; round a thousand
//!   queues 0.376 to 0.400 M, of five, ahead in three (a busy machine). Places of messages were sorted by queue, with a look at each queue
//!   for each message, and each message held its set.
//! - **A publish that differs in its key alone is not decoded again** (`amqp::raw_publish`): round a thousand queues 0.409 to 0.426 M messages
//!   per processor second, 1.68 to 1.49 us in user space, ten pairs 0.548 to 0.558 M, medians of five alternating rounds of two
//!   seconds. All of a publish that went round queues was compared with the one before and decoded frame by frame.
//! - **A backlog keeps 8 MiB in memory, not 16**: as much as half of the read buffers, so that these are there for what follows. 0.808 to
//!   0.880 M messages published per processor second, medians of eight alternating rounds, and 0.707 to 0.728 M, of six, ahead in five,
//!   on another day (builds without link-time optimisation).
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
//! | read buffers of 128 KiB instead of 224 | 0.515 to 0.567 M/s against 0.655 (1 KiB, processor seconds, a busy machine) | less |
//! | of 384 and 512 KiB | 0.731 and 0.708 against 0.710 | no gain, more memory |
//! | a backlog read in pieces of 256 KiB | 0.28 to 0.32 M/s against 0.34 to 0.39 with 1 MiB | more waits for the disk |
//! | every list of deliveries changes hands with an empty outbox | not measured | the larger list is freed and made again; now only when the new one is larger |
//! | no zeros ahead while a backlog is published | 0.46 to 0.53 M/s against 0.50 to 0.58 with them | written bytes nearly halve, and nothing else |
//! | putting off the consumers' wake-ups only, not the commit's | 3.58 us a message of ten pairs against 3.47 | both |
//! | putting wake-ups off always | a pair at window 100: 51 `epoll_wait` against 37, kernel 3.49 us against 2.59 | whoever is alone waits for nothing |
//! | wake-ups put off for less: 3 rounds, or 500 kB | 3.25 and 3.21 us a message of ten pairs (1000) against 3.10; runs spread by a quarter | no gain to be seen |
//! | wide reads of 112 KiB with ten pairs | 3.98 us a message against 3.10 | more reads, each wakes its client |
//! | deliveries of 232 KiB a write instead of up to 1 MiB, in a cold drain | 0.62 against 0.62 M/s, with records fetched whole 0.82 against 0.83 | nothing gained, and more writes |
//! | consumers, holders and messages of sixteen deliveries looked at in three passes | 3.4 to 4.2 % of the time round 1,000 queues against 3.7 to 4.2 % | within the noise |
//! | large pages for all of the allocator's memory | 0.281 against 0.305 M/s of ten pairs, 0.369 against 0.413 of one | less, and an idle broker takes more |
//! | bodies of a drain as pieces of their own in the output | 0.79 against 0.83 M/s, a single run; 0.45 against 0.37 us in the kernel | two pieces a message cost the kernel more than the copy costs us |
//! | one codegen unit, with the link-time optimisation there is | 0.63 against 0.66 M/s at window 1000, 0.31 against 0.31 at 100, 4.52 against 4.26 at 16 B | within the noise but for the last |
//! | a route as one line of the cache, found by a small table | 0.361 against 0.370 M/s round 1,000 queues, four alternating rounds | waits for memory shrink in the profile, and nothing else |
//! | keys hashed and their routes looked up in one pass, not in two | 2.5 to 2.9 % of the time round 1,000 queues against 1.1 to 1.2 % | fewer lines are under way at a time |
//! | acknowledgements round many queues not sorted where they come in ascending stretches | sorting is 0.9 % of the time round 1,000 queues | a queue that comes back in a later stretch is visited, and written to the log, once more |
//! | a consumer's outbox left alone, while its wake-up is put off, when it runs because of an acknowledgement | sends of ten pairs 15.4 to 10.3 for 1,000 messages; 0.566 to 0.586 and 0.522 to 0.564 M/s at window 1000, ahead in 6 of 12 rounds; 0.520 to 0.536 and 0.523 to 0.520 at 100; four publishers to one queue 0.644 to 0.614 | a third fewer sends cost as much, as far as can be seen |
//! | a message that keeps the length of its payload | 1,793 against 1,759, durable 1 KiB 6,611 against 6,588 | adding it up once costs what asking for it does |
//!
//! # What is left
//!
//! - Two blocks of memory for a message whose head is longer than 62 bytes, head and handle.
//! - A durable body is copied twice between the buffers of the sockets: into the batch and into the output. When messages that wait
//!   hold all of the read buffers, it is copied into the message as well.
//! - Messages round a thousand queues cost 3,970 instructions more than round one in a build without link-time optimisation (4,690
//!   before), spread over all that is done for a queue; the settle record's part is about 250, and a dozen operations are atomic. The
//!   caches' misses are not counted here.
//!   The rate follows the network thread, which is busy for nearly all of the time with one queue and with a thousand; commits are as
//!   frequent, and the generator takes hardly more. Of the 0.55 us more on that thread, profiles say: publishing 0.31 (routes 0.14),
//!   settling 0.15, deliveries 0.07, taking tags 0.04.
//! - One pair round ten queues at a window of 1,000 takes as much as ten pairs, which publish round ten queues as well, 2.35 us against
//!   2.27, where one pair with one queue takes 1.71: with shorter runs, from publish to acknowledgement, come two thirds and more of
//!   what ten pairs take beyond one.
//! - Ten publishers of large windows: ten megabytes are under way. Bodies wait for their consumers' prefetch, so neither waking
//!   these sooner nor shorter reads keep them in the cache.
//! - A cold backlog: two passes over a body that is not in the cache, the CRC on the reader and the copy into the output on the
//!   network thread.
//! - A backlog published: 60 % on the network thread, mostly memory; filing on the checkpoint thread is 0.10 to 0.13 us a message.
//! - At a window of 100, a commit for 100 messages: the kick of the virtual disk is 14 % of the processor time, and a file
//!   system without a journal writes the inode's block with each sync, which is more than the flush itself.
//! - A commit for each message costs 29,041 instructions of the release build.
//! - A cold message arrives in its queue one by one (`Slots::arrive`), and goes one by one where it is taken without
//!   acknowledgement.
//! - Bodies of 1 MiB: the commit thread copies a part, writes it and waits. It could copy the next part meanwhile.
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
