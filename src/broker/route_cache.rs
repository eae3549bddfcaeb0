//! What a connection remembers of exchanges it may publish to, and of where their messages go.
//!
//! ```text
//!   exchanges   name -> key -> targets      all of it; a look-up hashes both names
//!   recent      [ names, targets ] [ .. ] [ ] [ .. ] ..    copies of it, found by the end of the key
//!                 ^ home of the names; they stand there or in one of the places behind
//!   newest      names, targets               the one used last, twice in a row: for messages that follow each other to one place
//! ```
//! A publisher that goes round a thousand queues finds neither kind in the processor's cache. So a copy is one line of 64
//! bytes, and the lines of a batch are fetched together before they are used one by one ([`RouteCache::warm`]).

use std::collections::HashMap;
use std::sync::Arc;

use smallvec::SmallVec;

use super::queue::QueueHandle;
use crate::amqp::short_string::ShortString;

/// Routes a connection remembers; when there are more, it forgets all and begins anew. About 1 MiB when full.
const CACHED_ROUTES_MAX: usize = 4096;
/// Fewest places of the routes used last; a power of two.
const RECENT_PLACES_MIN: usize = 16;
/// Places for each route that is remembered, so that most stand at their home.
const RECENT_PLACES_PER_ROUTE: usize = 4;
/// Places that a route may stand in, its home first.
const RECENT_SEARCH_MAX: usize = 8;

/// Targets of a message, shared with the cache.
pub(super) type SharedTargets = Arc<[QueueHandle]>;

/// See the module.
#[derive(Debug, Default)]
pub(super) struct RouteCache {
    /// Versions of the topology and of the permissions it holds for.
    versions: (u64, u64),
    /// How many queues there had been; matters only to routes without a queue.
    queues_version: u64,
    has_unroutable: bool,
    /// Exchange, then routing key. An exchange that is here has passed the checks.
    exchanges: HashMap<ShortString, HashMap<ShortString, SharedTargets>>,
    routes_count: usize,
    /// Copies of some of these routes. None is ever taken out, so an empty place ends a search.
    recent: Vec<Option<RecentRoute>>,
    /// A copy of the route that was found last, if it was found twice in a row.
    newest: Option<NewestRoute>,
    /// The place among `recent` that was found last.
    found_last: Option<usize>,
}

/// See [`RouteCache::find`].
#[derive(Debug)]
struct NewestRoute {
    /// Exchange and key as [`Message::raw_names`](super::message::Message::raw_names) has them.
    names: Vec<u8>,
    targets: SharedTargets,
}

/// One line of the processor's cache, for names of usual length. They come first: bytes are compared 32 at a time, of which
/// those behind them must not lie in the next line, which nobody has fetched.
#[derive(Debug, Clone)]
#[repr(C, align(64))]
struct RecentRoute {
    /// Exchange and key as [`Message::raw_names`](super::message::Message::raw_names) has them.
    names: SmallVec<[u8; 36]>,
    targets: SharedTargets,
}

const _: () = assert!(size_of::<Option<RecentRoute>>() == 64);
const _: () = assert!(std::mem::offset_of!(RecentRoute, names) == 0);

/// Where names are looked for first among so many places (a power of two): by their last bytes, those of the key, in which an
/// application's keys differ.
fn home_of(bytes: &[u8], places_count: usize) -> usize {
    let tail = match bytes.last_chunk::<8>() {
        Some(tail) => u64::from_le_bytes(*tail),
        None => bytes
            .iter()
            .fold(0, |tail, byte| tail << 8 | u64::from(*byte)),
    };
    // What differs in one digit shall differ in all bits that are used.
    let mixed = (tail ^ bytes.len() as u64).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    let mixed = (mixed ^ (mixed >> 32)).wrapping_mul(0xD6E8_FEB8_6659_FD93);
    usize::try_from(mixed >> 32).unwrap_or_default() & (places_count - 1)
}

impl RouteCache {
    /// Forgets everything unless it holds for these versions.
    pub(super) fn renew(&mut self, versions: (u64, u64), queues_version: u64) {
        let is_missed = self.has_unroutable && self.queues_version != queues_version;
        if self.versions != versions || is_missed {
            self.clear();
            self.versions = versions;
        }
        self.queues_version = queues_version;
    }

    pub(super) fn clear(&mut self) {
        self.exchanges.clear();
        self.recent.clear();
        self.newest = None;
        self.found_last = None;
        self.routes_count = 0;
        self.has_unroutable = false;
    }

    pub(super) fn has_exchange(&self, name: &[u8]) -> bool {
        self.exchanges.contains_key(name)
    }

    /// Looks at the routes of some messages by their names, which the processor fetches side by side that way: three times one after the other,
    /// for the route, its targets and the first of these, where it would wait three times for each of the messages.
    pub(super) fn warm<'a>(&self, names: impl Iterator<Item = &'a [u8]>) {
        if self.recent.len() <= RECENT_PLACES_MIN {
            return;
        }
        // Apart from the look at the routes, of which the processor has more under way the less there is between them.
        let homes = names.map(|names| home_of(names, self.recent.len()));
        let homes: SmallVec<[usize; 32]> = homes.collect();
        let routes = homes.into_iter().map(|home| self.recent.get(home));
        let targets = routes.filter_map(|route| Some(&route?.as_ref()?.targets));
        let targets: SmallVec<[&SharedTargets; 32]> = targets.collect();
        let queues = targets.into_iter().filter_map(|targets| targets.first());
        let queues: SmallVec<[&QueueHandle; 32]> = queues.collect();
        let ids = queues.into_iter().map(|queue| queue.id().0);
        std::hint::black_box(ids.fold(0, |seen, id| seen ^ id));
    }

    /// Places of names among the recent routes, their home first; behind the last place comes the first.
    fn places(&self, names: &[u8]) -> impl Iterator<Item = usize> + use<> {
        let count = self.recent.len();
        let home = home_of(names, count);
        (home..home + RECENT_SEARCH_MAX).map(move |place| place & (count - 1))
    }

    /// The route of a message with these names, if the message before had them too.
    pub(super) fn newest(&self, names: &[u8]) -> Option<&SharedTargets> {
        let newest = self.newest.as_ref()?;
        (newest.names[..] == *names).then_some(&newest.targets)
    }

    /// Names and targets of the newest route that two messages in a row took. The message before may have taken another one: whoever
    /// uses this compares the names.
    pub(super) fn newest_route(&self) -> Option<(&[u8], &SharedTargets)> {
        let newest = self.newest.as_ref()?;
        Some((&newest.names, &newest.targets))
    }

    /// Remembers a route that was found, for the message behind.
    fn set_newest(&mut self, names: &[u8], targets: &SharedTargets) {
        // Takes the memory of the one before.
        let mut kept = self
            .newest
            .take()
            .map_or_else(Vec::new, |newest| newest.names);
        kept.clear();
        kept.extend_from_slice(names);
        self.newest = Some(NewestRoute {
            names: kept,
            targets: Arc::clone(targets),
        });
    }

    /// The newest route or a recent one, by the names of a message. A recent one becomes the newest when it is found twice in a
    /// row: of messages that go round several places, each would be made it for nothing.
    pub(super) fn find(&mut self, names: &[u8]) -> Option<SharedTargets> {
        if let Some(targets) = self.newest(names) {
            return Some(Arc::clone(targets));
        }
        let (place, targets) = self.find_recent(names)?;
        let targets = Arc::clone(targets);
        if self.found_last.replace(place) == Some(place) {
            self.set_newest(names, &targets);
        }
        Some(targets)
    }

    /// A route that was used before. Its exchange has passed the checks.
    pub(super) fn recent(&self, names: &[u8]) -> Option<&SharedTargets> {
        self.find_recent(names).map(|(_, targets)| targets)
    }

    /// The same, and where it stands.
    #[inline]
    fn find_recent(&self, names: &[u8]) -> Option<(usize, &SharedTargets)> {
        if self.recent.is_empty() {
            return None;
        }
        for place in self.places(names) {
            let route = self.recent.get(place)?.as_ref()?;
            if route.names[..] == *names {
                return Some((place, &route.targets));
            }
        }
        None
    }

    /// Any route that is remembered, by the names of a message in both forms; it becomes a recent one.
    pub(super) fn get(
        &mut self,
        names: &[u8],
        exchange: &[u8],
        key: &[u8],
    ) -> Option<&SharedTargets> {
        let targets = self.exchanges.get(exchange)?.get(key)?;
        let places_count = (self.routes_count * RECENT_PLACES_PER_ROUTE).next_power_of_two();
        if places_count > self.recent.len() {
            // What stood there has its place elsewhere now.
            self.recent.clear();
            let places_count = places_count.max(RECENT_PLACES_MIN);
            self.recent.resize(places_count, None);
        }
        let is_free = |place: &usize| self.recent.get(*place).is_some_and(Option::is_none);
        // Where all are taken, the newer route drives out the one at its home.
        let free = self.places(names).find(is_free);
        let place = free.unwrap_or_else(|| home_of(names, self.recent.len()));
        self.recent[place] = Some(RecentRoute {
            names: SmallVec::from_slice(names),
            targets: Arc::clone(targets),
        });
        Some(targets)
    }

    pub(super) fn insert_exchange(&mut self, name: &ShortString) {
        if self.exchanges.len() >= CACHED_ROUTES_MAX {
            self.clear();
        }
        self.exchanges.entry(name.detached()).or_default();
    }

    pub(super) fn insert(
        &mut self,
        exchange: &ShortString,
        key: &ShortString,
        targets: &SharedTargets,
    ) {
        if self.routes_count >= CACHED_ROUTES_MAX {
            self.clear();
        }
        // Copies of the names: slices would keep whole frames alive.
        let routes = self.exchanges.entry(exchange.detached()).or_default();
        routes.insert(key.detached(), Arc::clone(targets));
        self.has_unroutable |= targets.is_empty();
        self.routes_count += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(text: &str) -> ShortString {
        ShortString::from_text(text).expect("short")
    }

    /// Both with their lengths, as messages have them.
    fn names_of(exchange: &str, key: &str) -> Vec<u8> {
        let name =
            |text: &str| [&[u8::try_from(text.len()).expect("short")], text.as_bytes()].concat();
        [name(exchange), name(key)].concat()
    }

    /// Remembers `count` routes without targets and asks for each once.
    fn filled(count: usize) -> (RouteCache, Vec<ShortString>) {
        let mut cache = RouteCache::default();
        let keys: Vec<ShortString> = (0..count)
            .map(|index| name(&format!("queue.{index}")))
            .collect();
        for key in &keys {
            cache.insert(&name("x"), key, &Arc::from([]));
        }
        for key in &keys {
            let names = names_of("x", key.as_str());
            assert!(cache.get(&names, b"x", key.as_bytes()).is_some());
        }
        (cache, keys)
    }

    #[test]
    fn every_route_used_once_is_a_recent_one() {
        for count in [1, 16, 1000, CACHED_ROUTES_MAX] {
            let (cache, keys) = filled(count);
            let names: Vec<_> = keys.iter().map(|key| names_of("x", key.as_str())).collect();
            cache.warm(names.iter().map(Vec::as_slice));
            let recent = names.iter().filter(|names| cache.recent(names).is_some());
            assert_eq!(recent.count(), count);
            for (exchange, key) in [
                ("y", "queue.0"),
                ("x", "queue"),
                ("", "xqueue.0"),
                ("xqueue.0", ""),
            ] {
                assert!(cache.recent(&names_of(exchange, key)).is_none());
            }
        }
    }

    #[test]
    fn only_a_route_that_is_found_twice_in_a_row_becomes_the_newest() {
        let (mut cache, _) = filled(3);
        let names = |key: &str| names_of("x", key);
        let mut find = |key: &str| {
            let found = cache.find(&names(key));
            assert!(found.is_some(), "{key}");
            (0..3).find(|index| cache.newest(&names(&format!("queue.{index}"))).is_some())
        };
        let round = ["queue.0", "queue.1", "queue.2", "queue.0", "queue.1"];
        assert!(round.into_iter().all(|key| find(key).is_none()));
        assert_eq!(find("queue.1"), Some(1));
        // It stays until another one comes twice.
        assert_eq!(find("queue.2"), Some(1));
        assert_eq!(find("queue.1"), Some(1));
        assert_eq!(find("queue.0"), Some(1));
        assert_eq!(find("queue.0"), Some(0));
        assert!(cache.find(&names("queue")).is_none());
    }

    #[test]
    fn keys_that_differ_in_digits_stand_apart() {
        let keys = (0..1000).map(|index| format!("orders.{index:06}"));
        let homes: std::collections::HashSet<usize> =
            keys.map(|key| home_of(key.as_bytes(), 4096)).collect();
        // A random function would fill about 888.
        assert!(homes.len() > 800, "{} places", homes.len());
    }
}
