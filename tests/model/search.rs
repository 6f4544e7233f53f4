//! Breadth first through everything that can happen; the shortest way to what must not, and what cannot end well.
//!
//! A state is remembered by 64 bits of hash. Never: a random choice.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};

use super::config::Config;
use super::mutants::Mutant;
use super::promises;
use super::real::Real;
use super::state::{NODES, Packed, State};
use super::world::{self, Next};

#[derive(Debug)]
pub struct Found {
    pub states: usize,
    /// Everything that can happen has been looked at.
    pub whole: bool,
    /// The promise that was broken, with the way to it.
    pub broken: Option<(String, Vec<String>)>,
}

#[derive(Default)]
struct AsItIs(u64);

impl Hasher for AsItIs {
    fn finish(&self) -> u64 {
        self.0
    }
    fn write(&mut self, _: &[u8]) {}
    fn write_u64(&mut self, hash: u64) {
        self.0 = hash;
    }
}

fn hash(words: &Packed) -> u64 {
    let mixed = words.iter().fold(0x9e37_79b9_7f4a_7c15u64, |hash, word| {
        let hash = (hash ^ word).wrapping_mul(0xff51_afd7_ed55_8ccd);
        hash ^ hash >> 29
    });
    (mixed ^ mixed >> 32).wrapping_mul(0xc4ce_b9fe_1a85_ec53)
}

struct Search {
    real: Real,
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
pub fn search(config: &Config, mutant: Option<Mutant>, most: usize) -> Found {
    let mut search = Search {
        real: Real::new(config, mutant),
        seen: HashMap::default(),
        hashes: Vec::new(),
        parents: Vec::new(),
        ways: Vec::new(),
        leads: Vec::new(),
        over: Vec::new(),
    };
    search.run(most)
}

impl Search {
    fn run(&mut self, most: usize) -> Found {
        let mut now: Vec<Packed> = Vec::new();
        for start in self.real.config.starts() {
            let words = start.sorted(self.real.config.alike).0.pack();
            self.add(&words, START).inspect(|_| now.push(words));
        }
        let (mut at, mut out) = (0u32, Vec::new());
        while !now.is_empty() && self.hashes.len() < most {
            let mut then = Vec::new();
            for words in &now {
                let state = State::unpack(words);
                self.over.push(self.real.config.is_over(&state));
                self.ways.push(self.leads.len() as u32);
                out.clear();
                world::next(&mut self.real, &state, &mut out);
                for next in &out {
                    let other = next.state.sorted(self.real.config.alike).0;
                    let wrong = next.wrong.or_else(|| promises::broken(&self.real.config, &next.state));
                    if let Some(wrong) = wrong {
                        let mut told = self.way_to(at);
                        told.0.push(said(next, &told.1));
                        return self.found(false, Some((wrong.to_owned(), told.0)));
                    }
                    let words = other.pack();
                    let known = self.add(&words, at);
                    known.inspect(|_| then.push(words));
                    if self.real.config.ends {
                        let lead = self.seen[&hash(&words)];
                        self.leads.push(lead);
                    }
                }
                at += 1;
            }
            now = then;
        }
        let whole = now.is_empty();
        let stuck = (whole && self.real.config.ends).then(|| self.dead_end()).flatten();
        let broken = stuck.map(|at| ("L: from here nothing ends well any more".to_owned(), self.way_to(at).0));
        self.found(whole, broken)
    }

    fn found(&self, whole: bool, broken: Option<(String, Vec<String>)>) -> Found {
        Found { states: self.hashes.len(), whole, broken }
    }

    /// `Some` if it is new.
    fn add(&mut self, words: &Packed, parent: u32) -> Option<u32> {
        let hash = hash(words);
        if self.seen.contains_key(&hash) {
            return None;
        }
        let at = self.hashes.len() as u32;
        self.seen.insert(hash, at);
        self.hashes.push(hash);
        self.parents.push(parent);
        Some(at)
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
        let alike = self.real.config.alike;
        let starts = self.real.config.starts().into_iter().map(|start| start.sorted(alike).0);
        let first = self.hashes[path[0] as usize];
        let mut state = starts.into_iter().find(|start| hash(&start.pack()) == first).unwrap();
        let mut names: [usize; NODES] = std::array::from_fn(|n| n);
        let doubtful = self.real.config.doubtful;
        let kind = self.real.config.kind_of(&state, doubtful);
        let mut words = vec![format!("(commit {doubtful} is {kind:?})")];
        for at in &path[1..] {
            let mut out = Vec::new();
            world::next(&mut self.real, &state, &mut out);
            let wanted = self.hashes[*at as usize];
            let (step, sorted) = out
                .iter()
                .map(|next| (next, next.state.sorted(alike)))
                .find(|(_, (state, _))| hash(&state.pack()) == wanted)
                .unwrap();
            words.push(said(step, &names));
            names = std::array::from_fn(|to| names[sorted.1[to]]);
            state = sorted.0;
        }
        (words, names)
    }
}

fn said(next: &Next, names: &[usize; NODES]) -> String {
    use super::world::What::{Frozen, Publishes, Restored, Snapshot, StoreComes, StoreGoes, Unfrozen};
    let words = next.step.what.words();
    match next.step.what {
        Frozen | Publishes | Restored | Snapshot | StoreComes | StoreGoes | Unfrozen => words.to_owned(),
        _ => format!("n{}: {words}", names[next.step.node as usize] + 1),
    }
}
