//! Topic exchanges: a trie over the words of the binding keys, walked as a set of states.
//!
//! Words are separated by `.`; the empty key has no words, `a.` has two. In a binding key the word `*`
//! stands for one word and `#` for any number, none included. In a routing key both are ordinary words.
//!
//! ```text
//!  bindings  a.*.c   a.#   #.b        routing key a.b
//!
//!  root -a-> o -*-> o -c-> (a.*.c)    before any word   {root, #}      (# also without a word)
//!    |       +-#-> (a.#)              after a           {a, a.#, #}
//!    +-#-> o -b-> (#.b)               after b           {a.*, a.#, #, #.b}  ->  a.#, #.b match
//! ```
//!
//! All nodes reachable after a prefix of the routing key are kept as one set without duplicates, so a key
//! of `w` words costs at most `w` times the size of the trie, however many `#` the binding keys have.
//! Backtracking matchers are exponential there.

use std::collections::HashMap;
use std::hash::Hash;

use bytes::Bytes;
use smallvec::SmallVec;

use super::items::Items;

/// Index of a node; the root is 0.
type NodeIndex = usize;
const ROOT: NodeIndex = 0;

/// Bindings by pattern.
#[derive(Debug)]
pub struct TopicTable<T> {
    /// Never empty: the root stays.
    nodes: Vec<Node<T>>,
    /// Nodes out of use.
    free: Vec<NodeIndex>,
}

#[derive(Debug)]
struct Node<T> {
    /// Next nodes by literal word.
    words: HashMap<Bytes, NodeIndex>,
    /// Next node by `*`.
    star: Option<NodeIndex>,
    /// Next node by `#`.
    hash: Option<NodeIndex>,
    /// This node was reached by `#`: every further word may stay here.
    is_hash: bool,
    /// Bindings whose key ends here.
    items: Items<T>,
}

impl<T: Clone + Eq + Hash> Node<T> {
    fn new(is_hash: bool) -> Self {
        Self {
            words: HashMap::new(),
            star: None,
            hash: None,
            is_hash,
            items: Items::default(),
        }
    }

    fn next(&self, word: &[u8]) -> Option<NodeIndex> {
        match word {
            b"*" => self.star,
            b"#" => self.hash,
            word => self.words.get(word).copied(),
        }
    }

    fn is_unused(&self) -> bool {
        self.items.is_empty() && self.words.is_empty() && self.star.is_none() && self.hash.is_none()
    }
}

impl<T: Clone + Eq + Hash> Default for TopicTable<T> {
    fn default() -> Self {
        Self {
            nodes: vec![Node::new(false)],
            free: Vec::new(),
        }
    }
}

/// The words of a key; the empty key has none.
fn words(key: &[u8]) -> impl Iterator<Item = &[u8]> {
    let is_empty = key.is_empty();
    key.split(|byte| *byte == b'.').skip(usize::from(is_empty))
}

/// Nodes reached so far. Few in practice.
type States = SmallVec<[NodeIndex; 16]>;

impl<T: Clone + Eq + Hash> TopicTable<T> {
    /// Adds a binding with the pattern `key`.
    pub fn insert(&mut self, key: &Bytes, item: T) {
        let mut at = ROOT;
        for word in words(key) {
            at = match self.node(at).next(word) {
                Some(next) => next,
                None => self.add_child(at, key.slice_ref(word)),
            };
        }
        self.node_mut(at).items.insert(item);
    }

    /// Removes a binding with the pattern `key`, and nodes that lead nowhere then.
    pub fn remove(&mut self, key: &[u8], item: &T) {
        let mut path = vec![ROOT];
        let mut at = ROOT;
        for word in words(key) {
            let Some(next) = self.node(at).next(word) else {
                return;
            };
            path.push(next);
            at = next;
        }
        self.node_mut(at).items.remove(item);
        let words: Vec<&[u8]> = words(key).collect();
        for (parent, word) in path.iter().zip(&words).rev() {
            let Some(child) = self.node(*parent).next(word) else {
                return;
            };
            if !self.node(child).is_unused() {
                return;
            }
            self.remove_child(*parent, word, child);
        }
    }

    /// Visits the bindings whose pattern matches `routing_key`, each once.
    pub fn route<'a>(&'a self, routing_key: &[u8], mut visit: impl FnMut(&'a T)) {
        let mut states = States::new();
        let mut next = States::new();
        self.reach(ROOT, &mut states);
        for word in words(routing_key) {
            self.step(&states, word, &mut next);
            std::mem::swap(&mut states, &mut next);
            if states.is_empty() {
                return;
            }
        }
        for state in &states {
            self.node(*state).items.iter().for_each(&mut visit);
        }
    }

    /// All nodes one `word` away from `states`, each once, into `next`.
    fn step(&self, states: &States, word: &[u8], next: &mut States) {
        next.clear();
        for state in states {
            let node = self.node(*state);
            if node.is_hash {
                self.reach(*state, next);
            }
            if let Some(child) = node.words.get(word) {
                self.reach(*child, next);
            }
            if let Some(child) = node.star {
                self.reach(child, next);
            }
        }
        // Two ways to the same node exist only behind a `#`, but there their number would multiply.
        next.sort_unstable();
        next.dedup();
    }

    /// Adds `at` and what `#` reaches from it without a word.
    fn reach(&self, at: NodeIndex, states: &mut States) {
        let mut reached = Some(at);
        while let Some(index) = reached {
            states.push(index);
            reached = self.node(index).hash;
        }
    }

    fn add_child(&mut self, parent: NodeIndex, word: Bytes) -> NodeIndex {
        let node = Node::new(&word[..] == b"#");
        let index = match self.free.pop() {
            Some(index) => {
                *self.node_mut(index) = node;
                index
            }
            None => {
                self.nodes.push(node);
                self.nodes.len() - 1
            }
        };
        let parent = self.node_mut(parent);
        match &word[..] {
            b"*" => parent.star = Some(index),
            b"#" => parent.hash = Some(index),
            _ => {
                // A copy: a slice would keep the whole frame alive it came in.
                parent.words.insert(Bytes::copy_from_slice(&word), index);
            }
        }
        index
    }

    fn remove_child(&mut self, parent: NodeIndex, word: &[u8], child: NodeIndex) {
        let parent = self.node_mut(parent);
        match word {
            b"*" => parent.star = None,
            b"#" => parent.hash = None,
            word => {
                parent.words.remove(word);
            }
        }
        self.free.push(child);
    }

    fn node(&self, index: NodeIndex) -> &Node<T> {
        // Indices come from this table only, and nodes are never taken out of the vector.
        &self.nodes[index]
    }

    fn node_mut(&mut self, index: NodeIndex) -> &mut Node<T> {
        &mut self.nodes[index]
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The definition, literally.
    fn matches_naively(pattern: &[&[u8]], key: &[&[u8]]) -> bool {
        match (pattern.split_first(), key.split_first()) {
            (None, None) => true,
            (Some((&b"#", rest)), _) => {
                matches_naively(rest, key)
                    || key
                        .split_first()
                        .is_some_and(|(_, key)| matches_naively(pattern, key))
            }
            (Some((word, rest)), Some((first, key))) => {
                (*word == b"*" || word == first) && matches_naively(rest, key)
            }
            _ => false,
        }
    }

    fn table(patterns: &[&str]) -> TopicTable<usize> {
        let mut table = TopicTable::default();
        for (index, pattern) in patterns.iter().enumerate() {
            table.insert(&Bytes::copy_from_slice(pattern.as_bytes()), index);
        }
        table
    }

    fn route(table: &TopicTable<usize>, key: &str) -> Vec<usize> {
        let mut found = Vec::new();
        table.route(key.as_bytes(), |item| found.push(*item));
        found.sort_unstable();
        found
    }

    #[test]
    fn verified_matrix_of_rabbitmq() {
        let patterns = [
            "#", "*", "*.*", "a.#", "#.a", "a.*", "*.a", "a..b", "", "a.#.b", "#.#", ".", "*.#",
            "#.*", "a.b", "a",
        ];
        let table = table(&patterns);
        for (key, expected) in [
            ("", "# <empty> #.#"),
            ("a", "# * a.# #.a #.# *.# #.* a"),
            ("a.b", "# *.* a.# a.* a.#.b #.# *.# #.* a.b"),
            ("a.", "# *.* a.# a.* #.# *.# #.*"),
            (".a", "# *.* #.a *.a #.# *.# #.*"),
            (".", "# *.* #.# . *.# #.*"),
            ("..", "# #.# *.# #.*"),
            ("a..b", "# a.# a..b a.#.b #.# *.# #.*"),
            ("a.x.y.b", "# a.# a.#.b #.# *.# #.*"),
            ("a.b.c", "# a.# #.# *.# #.*"),
            ("#", "# * #.# *.# #.*"),
        ] {
            let found: Vec<&str> = route(&table, key)
                .into_iter()
                .map(|index| match patterns[index] {
                    "" => "<empty>",
                    pattern => pattern,
                })
                .collect();
            assert_eq!(found.join(" "), expected, "routing key {key:?}");
        }
    }

    #[test]
    fn wildcards_are_whole_words() {
        let table = table(&["a*", "a#b", "*a", "#a"]);
        assert_eq!(route(&table, "ab"), [0; 0]);
        assert_eq!(route(&table, "a*"), [0]);
        assert_eq!(route(&table, "a#b"), [1]);
    }

    #[test]
    fn many_hashes_stay_cheap() {
        // A backtracking matcher takes longer than the universe has lasted for this one.
        let pattern = vec!["#.a"; 60].join(".");
        let table = table(&[&pattern]);
        assert!(route(&table, &format!("{}.b", vec!["a"; 120].join("."))).is_empty());
        assert_eq!(route(&table, &vec!["a"; 120].join(".")), [0]);
    }

    #[test]
    fn removal_gives_nodes_back() {
        let mut table = table(&["a.b.c", "a.*.#", "a"]);
        let nodes_count = table.nodes.len();
        table.remove(b"a.b.c", &0);
        table.remove(b"a.*.#", &1);
        table.remove(b"never.bound", &1);
        assert_eq!(route(&table, "a"), [2]);
        assert_eq!(route(&table, "a.b.c"), [0; 0]);
        table.insert(&Bytes::from_static(b"a.x.#.*"), 3);
        assert_eq!(route(&table, "a.x.y"), [3]);
        assert!(table.nodes.len() <= nodes_count, "nodes are used again");
    }

    fn key() -> impl Strategy<Value = String> {
        prop::collection::vec(prop::sample::select(vec!["a", "b", "", "*", "#"]), 0..6)
            .prop_map(|words| words.join("."))
    }

    proptest! {
        #[test]
        fn agrees_with_the_naive_matcher(
            patterns in prop::collection::vec(key(), 1..12),
            removed in prop::collection::vec(any::<prop::sample::Index>(), 0..4),
            keys in prop::collection::vec(key(), 1..8),
        ) {
            let patterns_text: Vec<&str> = patterns.iter().map(String::as_str).collect();
            let mut table = table(&patterns_text);
            let removed: Vec<usize> = removed.iter().map(|i| i.index(patterns.len())).collect();
            for index in &removed {
                table.remove(patterns[*index].as_bytes(), index);
            }
            for key in &keys {
                let key_words: Vec<&[u8]> = words(key.as_bytes()).collect();
                let expected: Vec<usize> = (0..patterns.len())
                    .filter(|index| !removed.contains(index))
                    .filter(|index| {
                        let pattern: Vec<&[u8]> = words(patterns[*index].as_bytes()).collect();
                        matches_naively(&pattern, &key_words)
                    })
                    .collect();
                prop_assert_eq!(route(&table, key), expected, "{:?} {:?}", &patterns, key);
            }
        }
    }
}
