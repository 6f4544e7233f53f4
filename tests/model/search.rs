//! Breadth first through everything that can happen; the shortest way to what must not, and what cannot end well.
//!
//! A state is remembered by 64 bits of hash. Never: a random choice.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::hash::{BuildHasherDefault, Hasher};

use super::state::NODES;

/// What can be searched: its states, packed into a few words, and what can happen in each.
pub trait World {
    type State: Copy;
    type Packed: Copy + AsRef<[u64]>;

    fn starts(&self) -> Vec<Self::State>;
    /// Everything that can happen in a state.
    fn next(&mut self, state: &Self::State, out: &mut Vec<Next<Self::State>>);
    /// The promise that a state breaks.
    fn broken(&mut self, state: &Self::State) -> Option<&'static str>;
    fn is_over(&self, state: &Self::State) -> bool;
    /// Whether from every state there must be a way to one that is over.
    fn ends(&self) -> bool;
    /// The same state with nodes that are alike in a fixed order, and that order.
    fn sorted(&self, state: &Self::State) -> (Self::State, [usize; NODES]);
    fn pack(state: &Self::State) -> Self::Packed;
    fn unpack(words: &Self::Packed) -> Self::State;
    /// What is particular about this start.
    fn title(&self, start: &Self::State) -> String;
}

pub struct Next<S> {
    /// None: it happens to all of them.
    pub node: Option<u8>,
    pub words: &'static str,
    pub state: S,
    pub wrong: Option<&'static str>,
}

#[derive(Debug)]
pub struct Found {
    pub states: usize,
    /// Everything that can happen has been looked at.
    pub whole: bool,
    /// The promise that was broken, with the way to it.
    pub broken: Option<(String, Vec<String>)>,
}

#[derive(Default)]
pub struct AsItIs(u64);

impl Hasher for AsItIs {
    fn finish(&self) -> u64 {
        self.0
    }
    fn write(&mut self, _: &[u8]) {}
    fn write_u64(&mut self, hash: u64) {
        self.0 = hash;
    }
}

pub fn hash(words: &impl AsRef<[u64]>) -> u64 {
    let mixed = words.as_ref().iter().fold(0x9e37_79b9_7f4a_7c15u64, |hash, word| {
        let hash = (hash ^ word).wrapping_mul(0xff51_afd7_ed55_8ccd);
        hash ^ hash >> 29
    });
    (mixed ^ mixed >> 32).wrapping_mul(0xc4ce_b9fe_1a85_ec53)
}

struct Search<W> {
    world: W,
    seen: HashMap<u64, u32, BuildHasherDefault<AsItIs>>,
    hashes: Vec<u64>,
    parents: Vec<u32>,
    /// Where each state's ways begin, and where they lead.
    ways: Vec<u32>,
    leads: Vec<u32>,
    over: Vec<bool>,
}

const START: u32 = u32::MAX;

/// Looks at no more than `most` states.
pub fn search<W: World>(world: W, most: usize) -> Found {
    let mut search = Search {
        world,
        seen: HashMap::default(),
        hashes: Vec::new(),
        parents: Vec::new(),
        ways: Vec::new(),
        leads: Vec::new(),
        over: Vec::new(),
    };
    search.run(most)
}

impl<W: World> Search<W> {
    fn run(&mut self, most: usize) -> Found {
        let ends = self.world.ends();
        let mut now: Vec<W::Packed> = Vec::new();
        for start in self.world.starts() {
            let words = W::pack(&self.world.sorted(&start).0);
            if self.add(&words, START).1 {
                now.push(words);
            }
        }
        let (mut at, mut out) = (0u32, Vec::new());
        while !now.is_empty() && self.hashes.len() < most {
            let mut then = Vec::new();
            for words in &now {
                let state = W::unpack(words);
                if ends {
                    self.over.push(self.world.is_over(&state));
                    self.ways.push(self.leads.len() as u32);
                }
                out.clear();
                self.world.next(&state, &mut out);
                for next in &out {
                    let words = W::pack(&self.world.sorted(&next.state).0);
                    let (lead, is_new) = self.add(&words, at);
                    let judged = || self.world.broken(&next.state);
                    if let Some(wrong) = next.wrong.or_else(|| is_new.then(judged).flatten()) {
                        let mut told = self.way_to(at);
                        told.0.push(said(next, &told.1));
                        return self.found(false, Some((wrong.to_owned(), told.0)));
                    }
                    if is_new {
                        then.push(words);
                    }
                    if ends {
                        self.leads.push(lead);
                    }
                }
                at += 1;
            }
            now = then;
        }
        let whole = now.is_empty();
        let stuck = (whole && ends).then(|| self.dead_end()).flatten();
        let broken = stuck.map(|at| ("L: from here nothing ends well any more".to_owned(), self.way_to(at).0));
        self.found(whole, broken)
    }

    fn found(&self, whole: bool, broken: Option<(String, Vec<String>)>) -> Found {
        Found { states: self.hashes.len(), whole, broken }
    }

    /// Its number, and whether it is new.
    fn add(&mut self, words: &W::Packed, parent: u32) -> (u32, bool) {
        let (hash, at) = (hash(words), self.hashes.len() as u32);
        match self.seen.entry(hash) {
            Entry::Occupied(known) => (*known.get(), false),
            Entry::Vacant(place) => {
                place.insert(at);
                self.hashes.push(hash);
                self.parents.push(parent);
                (at, true)
            }
        }
    }

    /// The first state from which the end cannot be reached any more.
    fn dead_end(&self) -> Option<u32> {
        let count = self.hashes.len();
        let end = |at: usize| self.ways.get(at + 1).map_or(self.leads.len(), |end| *end as usize);
        let mut from = vec![0u32; count + 1];
        self.leads.iter().for_each(|to| from[*to as usize + 1] += 1);
        (0..count).for_each(|at| from[at + 1] += from[at]);
        let (mut place, mut back) = (from.clone(), vec![0u32; self.leads.len()]);
        for at in 0..count {
            for to in &self.leads[self.ways[at] as usize..end(at)] {
                back[place[*to as usize] as usize] = at as u32;
                place[*to as usize] += 1;
            }
        }
        let mut well = self.over.clone();
        let mut open: Vec<usize> = (0..count).filter(|at| well[*at]).collect();
        while let Some(at) = open.pop() {
            for before in &back[from[at] as usize..from[at + 1] as usize] {
                if !std::mem::replace(&mut well[*before as usize], true) {
                    open.push(*before as usize);
                }
            }
        }
        well.iter().position(|well| !well).map(|at| at as u32)
    }

    /// In words, with the nodes' first names; and which of them stands where in the end.
    fn way_to(&mut self, at: u32) -> (Vec<String>, [usize; NODES]) {
        let mut path = vec![at];
        while self.parents[path[path.len() - 1] as usize] != START {
            path.push(self.parents[path[path.len() - 1] as usize]);
        }
        path.reverse();
        let starts = self.world.starts().into_iter().map(|start| self.world.sorted(&start).0);
        let first = self.hashes[path[0] as usize];
        let mut state = starts.into_iter().find(|start| hash(&W::pack(start)) == first).unwrap();
        let mut names: [usize; NODES] = std::array::from_fn(|n| n);
        let mut words = vec![self.world.title(&state)];
        for at in &path[1..] {
            let mut out = Vec::new();
            self.world.next(&state, &mut out);
            let wanted = self.hashes[*at as usize];
            let (step, sorted) = out
                .iter()
                .map(|next| (next, self.world.sorted(&next.state)))
                .find(|(_, (state, _))| hash(&W::pack(state)) == wanted)
                .unwrap();
            words.push(said(step, &names));
            names = std::array::from_fn(|to| names[sorted.1[to]]);
            state = sorted.0;
        }
        (words, names)
    }
}

fn said<S>(next: &Next<S>, names: &[usize; NODES]) -> String {
    match next.node {
        Some(node) => format!("n{}: {}", names[node as usize] + 1, next.words),
        None => next.words.to_owned(),
    }
}
