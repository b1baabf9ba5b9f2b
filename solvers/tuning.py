"""Every number in the solvers that was tuned on instances: changing one keeps every answer right.

Bounds stay proven and schedules stay valid whatever these are; what changes is how good an answer
is and how long it takes. Effort is counted in units that do not depend on the machine. A gap is a
fraction of the time of the step. Numbers that a proof rests on stand beside the proof.
"""

ANY_GAP = 1e9
"""The gap to ask for where any schedule that fits will do: the first one found is the answer."""

# sizes of graphs, in ops
TINY_OPS = 20
"""Up to so many ops the exact search of states is asked first, and it nearly always ends."""
LARGE_OPS = 500
"""Up to so many ops every means is tried; above, those that take long only where a gap is left."""
INTEGER_OPS = 2000
"""Above so many ops integer masters, and single runs given up or added, are too many to help."""

# model/master.py, model/symmetry.py, model/overshoot.py: the master, its cuts and its bursts
LEAST_CHECKS = 8
"""The checks that HiGHS may make in any integer master, however large its matrix is."""
LIKENESS_ROUNDS = 12
"""How far away, in edges, a difference is seen; what repeats is told apart near its ends only."""
MOST_NEW_CUTS = 3
"""How many cuts an order that overshoots may ask for at once."""
MOST_NEW_BURSTS = 40
"""How many bursts an order that overshoots may ask for at once."""
CUTS_APART = 100
"""New cuts are further apart than the number of ops over this."""

STALLED_ROUNDS = 5
"""After so many rounds of rows for next to no gain a relaxation is tight enough."""
STALLED_GAIN = 1e-3
"""What next to no gain is, as a part of the bound."""
LEAST_VIOLATION = 0.01
"""By how much a point must violate a row along a path for it to be added."""
MOST_PATH_ROWS = 300
"""How many rows along paths a relaxation may get at once."""

# bounds/least_bytes.py
LAST_RUN_OPS = 2000
"""On more ops than these the least cuts take too long."""
LAST_RUN_SETS = 64
"""The most ops of a set whose last run is looked at."""
LAST_RUN_STEPS = 7
"""How many such sets are tried, each of twice as many ops."""

# bounds/any_order.py
ANY_ORDER_SHARE = 0.1
"""The part of the seconds that is kept for the bound."""
ANY_ORDER_CUTS = 3
"""How many cuts are tried, one after another; each may only raise the bound."""

# exact/state_search.py and exact/milp.py
MOST_EXACT_OPS = 64
"""The most ops that the search of states is tried on at all; nearly all of them are too many."""
MOST_STATES = 400_000
"""How many states are looked at before the search gives up with a bound: a second or two."""
MOST_PROGRAM_CELLS = 100_000
"""The most ops x ops x passes that PuLP builds in a few seconds."""
SHRINKING_TRIES = 4
"""How often the budget shrinks when the solver's tolerance lets a schedule over it."""
MILP_BOUND_FINER = 10
"""The gap of the master that bounds the integer program is the gap asked for over this."""
MILP_BOUND_SHARE = 0.5
"""The part of the seconds that the master that bounds the integer program may take."""

# baselines: how finely their dials are swept
EVERY_SIZE_UP_TO = 32
"""Up to here every number of segments, blocks or slots is tried."""
SIZE_STEP = 8
"""Beyond, the next number tried is larger by the number over this."""
CHEN_FILLINGS = 40
"""How many sizes of a full segment chen_greedy tries."""
CHEN_FILLING_RATIO = 0.85
"""Each size as a part of the one before; the first is all of the forward pass, in bytes."""
REVOLVE_MOST_RUNS = 30_000
"""The most runs of ops in an order that is tried: few slots mean many, one slot means n * n."""
REVOLVE_WIDTHS = 6
"""How many limits, in bytes, are tried on what crosses a position that may become a state."""
ROUNDING_MOST_OPS = 48
"""Larger graphs are merged to about so many ops before their program is relaxed and rounded."""
ROUNDING_AIMS = (0.95, 0.85, 0.7, 0.5, 0.3)
"""Where relaxations aim, as parts of the way from the floor to the budget: rounding oversteps."""
ROUNDING_THRESHOLDS = (0.5, 0.25, 0.1, 0.75, 0.9)
"""The fractions above which a value is kept."""
ROUNDING_DRAWS = 8
"""How many random thresholds are tried at each aim."""

# search/initial.py
SEGMENTS_STEP = 4
"""The next number of segments tried is larger by the number over this."""

# search/evict.py and search/incumbent.py
PATIENCES = (0.0, 0.5, 1.0)
"""Powers of the wait in the rank of what to evict; none wins always, and trying all is cheap."""
CLOCK_EVERY = 64
"""How many runs of ops are made between looks at the clock."""
DEEPEST_NESTING = 100
"""How deep recomputations may nest."""
LONGER_ORDER = 3
"""An order that fits may be so many times as long as the one given, and ``LONGER_ORDER_RUNS``."""
LONGER_ORDER_RUNS = 50_000
"""How many runs of ops it may have beyond that."""
LAVISH_EVICTING = 3.0
"""Evicting is given up at so many times the extra seconds known; pruning seldom saves more."""

# search/drop_single.py
DROP_WORK = 500_000
"""The effort: orders tried times their length in ops."""
DROP_REACH = 1.25
"""An order that holds so many times the budget is left to others: too much would have to change."""
DROP_TRIES = 12
"""How many values are tried at a step, the most promising first."""

# search/anneal_order.py
BYTE_WITHIN_BUDGET = 1e-3
"""The weight of a byte within the budget, against one above it."""
COLDNESS = 20
"""The cost of the first order over the first temperature."""
COOLING = 1e-3
"""The last temperature, as a part of the first."""

# search/time_cuts.py: integer masters
FINE_GAP = 1e-4
"""The gap worth more rounds up to ``FINE_OPS`` ops, even if the caller would take a wider one."""
FINE_OPS = 1000
"""On more ops than these the fine gap grows with them."""
RELAXED_ROUNDS = 2
"""How many of the first rounds only relax their masters, to find cuts."""
CLOSE_AIMS = (0.98, 0.96, 0.94, 0.92)
"""Parts of the budget that plans of at most ``LARGE_OPS`` ops are made for there; never bounds."""
TIGHT_ROUNDS = 8
"""How many of the rounds after those relax their masters with rows along paths at most."""
TIGHT_PATIENCE = 2
"""After so many of them for next to no gain they end."""
TIGHT_GAIN = 1e-4
"""What next to no gain is, as a fraction of the step."""
LEAST_PRICE = 1e-3
"""Memory at a moment counts in a proof if its price is this part of that of all moments."""
PATH_ROUNDS = 30
"""How often such a relaxation gets more of these rows; few need as many."""
INTEGER_ROUNDS = 12
"""How many rounds of integer masters follow."""
FIRST_WORK = 400_000
"""What the first of them may cost, in the unit of ``solve_master``; about a second."""
MOST_WORK = 40_000_000
"""What the last may cost, if the gap is still wider than the caller would take."""
WORK_GROWTH = 10
"""How many times more the next may cost once the plans overshoot nowhere."""

# search/relaxed_masters.py: relaxations of large graphs
ADDING_ROUNDS = 8
"""How often cuts are added."""
AIM_ROUNDS = 5
"""How many aims below the budget are tried."""
SHARED_ABOVE_OPS = 1500
"""Above so many ops those that look alike share columns; up to there it would save nothing."""
MOST_COLUMNS = 200_000
"""About how many ops times cuts a relaxation may have."""
FAR_OVERSHOOT = 0.02
"""The part of the budget above which an overshoot is no matter of a few more cuts."""
STEEPER = 3.0
"""How many times steeper time over budget is below here than from the plain step to here."""
NARROW_NEARBY = 5
"""How many ops on either side a narrow place is compared with."""
PINS_THINNED = 3
"""Of the narrow places one in so many is left for the next, coarser choice of pins."""

# model/branching.py and search/time_cuts.py: bounds by branching
BRANCH_TRIES = 6
"""How many columns are tried before one is branched on, the most promising first."""
BRANCH_ITERATIONS = 200
"""How many iterations each side gets in such a try."""
BRANCH_ROUNDS = 2
"""How often a side gets more rows along paths."""
BRANCH_FRACTION = 1e-4
"""A column nearer to a whole number than this is not branched on."""
BRANCH_PATIENCE = 8
"""After so many sides parted for next to no gain branching is given up."""
BRANCH_GAIN = 0.01
"""What next to no gain is, as a part of what is left to prove."""
RAY_LENGTHS = (1.0, 1e2, 1e4, 1e6)
"""How far along a ray is gone that says that a side has no point: the proof grows with it, and so
does what rounding may have done."""
BRANCH_WORK = 6_000_000_000
"""The effort: iterations times the entries of the matrix; some twenty seconds."""
PROVING_WORK = 20_000_000_000
"""The effort of branching beside what looks for plans."""
BRANCH_SHARE = 0.3
"""The part of the seconds left that it may take."""
BRANCHED_ON = 0.1
"""It got on if it closed this part of the gap."""
MOST_BRANCHED = 6000
"""About how many ops times cuts it is tried on; each side takes too long on more."""
WORTH_BRANCHING_GAP = 0.06
"""The gap up to which it is tried."""

# search/polish.py
POLISH_WORK = 200_000
"""The effort: neighbours tried times their length in ops, some five seconds."""

# search/master_neighbours.py
NEAR_ROUNDS = 60
"""How many masters near the best plan are solved at most."""
NEAR_IDLE = 12
"""After so many that lead to nothing the search ends."""
NEAR_AGAIN = 2
"""How often it is begun again, with other stretches, where a gap is left in the end."""
NEAR_LENGTH = 0.2
"""The length of each of two stretches of ops that are free, as a part of those that may run again;
it changes."""
NEAR_GROWTH = 1.15
"""By how much it does."""
NEAR_WORK = 3_000_000
"""What each master may cost, in the unit of ``solve_master``."""
NEAR_AGREE = 1e-6
"""The distance at which a plan and the relaxation say the same of a column."""
NEAR_GAIN = 1e-5
"""The gain, as a fraction of the step, that is not worth looking for."""

# search/stretches.py
STRETCH_RUNS = (64, 160)
"""How many runs of ops a stretch has, about: short ones first."""
STRETCH_WORTH = 1e-3
"""What must run again in a stretch, as a fraction of the step, for it to be solved."""
STRETCH_GAIN = 1e-3
"""A sweep over them got on if it gained this part of the step."""
STRETCH_GAP = 1e-3
"""The gap of a stretch, as a fraction of its own seconds, that is left."""
STRETCH_WORK = 100_000
"""What an integer master of a stretch may cost, in the unit of ``solve_master``."""
STRETCH_POLISH_WORK = 20_000
"""The effort of the local search in each stretch."""

WORTH_STRETCHES_GAP = 0.02
"""The gap above which they are solved in the end."""

# search/block_plans.py
BLOCK_LEVELS = 3
"""How deep modules are nested that are taken for blocks."""
BLOCKS_TOGETHER = (1, 2, 3)
"""How many neighbouring blocks count as one."""
MOST_BLOCKS = 32
"""The most blocks of a small graph."""
BLOCK_GRANTS = (0.0, 0.25)
"""How much of what a part holds above the least it may, were nothing in it to run twice."""
BLOCK_ROUNDS = 12
"""How often parts that do not fit are granted more."""
BLOCK_MORE = 0.002
"""The least that they are granted more, as a part of the budget."""
BLOCK_GAP = 3e-3
"""The gap of a stretch, as a fraction of its own seconds, that is left."""
BLOCK_WORK = 200_000
"""What an integer master of a stretch may cost, in the unit of ``solve_master``."""
BLOCK_POLISH_WORK = 20_000
"""The effort of the local search in a stretch."""
WORTH_BLOCKS_GAP = 0.02
"""The gap above which they are tried."""

# search/free_moves.py
MOVES_AHEAD = (1, 2, 4, 12)
"""A value is kept until one of so many of the next large ones is made."""
MOVES_SHIFTS = (1, 1, 2, 3, 5, 8, 16)
"""An op is moved past so many others."""
MOVES_KEPT_SHARE = 0.6
"""The part of the moves that free a value at another time, not run an op."""
MOVES_RESTORED_SHARE = 0.4
"""The part of those that free it as early as it can be."""

# search/packing.py
PACKING_EVENTS = 2_000_000
"""How many blocks may be taken and given back in all trials together: some five seconds."""
PACKING_HEAT = 0.02
"""How many more bytes, on average and at first, a move may lack, as a part of what is lacking."""
PACKING_PATIENCE = 700
"""After so many moves in a row that cannot be made the search is given up."""
PACKING_SIZES = 12
"""In how many sizes of memory at most a schedule is to run, of those that it did not run in."""

# search/walk_down.py
WALKS_FROM = (1.03, 1.05, 1.07)
"""The budgets whose plans are walked down, over the one asked for."""
WALK_STEP = 0.005
"""How much smaller each next budget is, as a part of the one asked for."""
WORTH_WALKING_GAP = 0.05
"""The gap that is worth the relaxations of those budgets."""

# minimum_budget.py
LEAST_FIRST_STEP = 256
"""The first step up from the floor is the way to the least peak known over this."""
LEAST_PRECISION = 1000
"""The least budget is narrowed down to the floor over this, in bytes."""
GUIDED_OPS = 1000
"""Up to so many ops masters guide the search; above, evicting from a start must do."""
GUIDED_ROUNDS = 2
"""How many masters are asked for a plan at a budget at which no start can be made to fit."""
GUIDED_WORK = 100_000
"""What an integer master may cost there, in the unit of ``solve_master``."""
LEAST_STEPS = 16
"""The first step down by plans is the way to the floor over this; the next ones are longer."""
LEAST_FAILURES = 2
"""After so many steps down that lead to nothing the search is given up; after twice as many on
graphs of at most ``LEAST_CUTS_OPS``."""
LEAST_STRETCH_OPS = 170
"""Longer stretches are not solved there: most of them take seconds and do not fit."""
LEAST_CUTS_OPS = 100
"""Up to so many ops integer masters are asked where blocks do not help."""

# given_order.py
CUTS_SHARE = 0.25
"""The integer masters' part of the seconds where something fits already; others have the rest."""
FITTING_SHARE = 0.62
"""Their part where nothing does."""
NEAR_PLANS_SHARE = 0.75
"""The part of what is left then of masters near the best plan; small steps have the rest."""
START_SHARE = 0.4
"""The part of the seconds that is kept for orders that hold little while nothing fits yet."""
JUDGING_SHARE = 0.03
"""The part of the seconds that is left for reading and judging what was found."""
CLOSE_GAP = 1e-3
"""The gap at which more relaxations are not worth their time."""
WORTH_INTEGERS_GAP = 1e-2
"""The gap from which integer masters do better than more relaxations, up to ``INTEGER_OPS``."""
WORTH_BASELINES_GAP = 3e-3
"""The gap above which baselines are asked on more than ``LARGE_OPS`` ops, unless a wider one is
accepted; below, at any gap."""
WORTH_SWEEPS_GAP = 1e-2
"""The gap above which they are on more than ``INTEGER_OPS`` ops: a sweep takes half a minute."""
BRIEF_POLISH_WORK = 50_000
"""The effort of the local search above ``LARGE_OPS``, where it seldom helps."""

# reorder.py and auto.py
MOVES_PER_OP = 150
"""How many moves are tried for each op and each start."""
QUICK_MOVES_PER_OP = 20
"""How many for each op in the quick try that says whether reordering is promising."""
ANY_ORDER_WORK = 500_000
"""What each integer master of the bound for any order may cost, in the unit of ``solve_master``."""
GIVEN_ORDER_SHARE = 0.5
"""The given order's part of the seconds where reordering is promising; the rest is for that."""
WORTH_REORDERING = 1e-3
"""What leaving the given order must save, as a fraction of the step."""
PROMISING_OVERSHOOT = 0.5
"""Reordering is tried if a quick try overshoots the budget by this much of what was, or less."""

# frontier.py
POINTS_SHARE = 0.5
"""The points' part of the seconds."""
LEAST_SHARE = 0.2
"""The part of the seconds in which the least budget must be found; most graphs need a tenth."""
POINT_GAP = 0.01
"""The gap at which a point of a curve is left, however small a gap is asked for."""
STEEPNESS = 1.5
"""How much closer together budgets are at the least than at the most; 1 is even."""
WORTH_NEIGHBOURS_GAP = 1e-4
"""The gap above which the neighbours' schedules are tried."""
WORTH_LINES_GAP = 1e-3
"""The gap above which lines are drawn at other cuts than where the plain step holds most."""
OTHER_LINE_CUTS = 3
"""How many such other cuts."""

# bounds/with_host.py and offload.py: values that may move to the host
HOST_BOUND_CUTS = 4
"""How many moments that hold too much a bound looks at."""
HOST_BOUND_MOMENTS = 24
"""Into how many parts of about equal time, and of equal numbers of ops, it parts the step."""
HOST_BOUND_INTEGER_OPS = 24
"""Up to so many ops its variables are integers, and every moment that holds too much is a cut."""
HOST_ROUNDS = 2
"""How often places of copies are found anew for the times that waiting changed."""
HOST_TARGETS = 10
"""How many larger budgets are solved for by recomputation, what is too much then to be moved."""
HOST_REFINEMENTS = 3
"""How often such budgets are sought between those beside the best."""
HOST_POLISH_SHARE = 0.5
"""The part of a search's seconds in which repeated runs are given up."""
HOST_POLISH_TRIES = 2_000
"""How many repeated runs of an order are given up, one at a time, for more to be moved."""
HOST_POLISH_OTHERS = 4
"""Of how many orders beside the best, and that which moves nothing."""
HOST_POLISH_SWEEPS = 3
"""How often all of them are tried."""
HOST_ALONE_SHARE = 0.4
"""A curve's part of the seconds for recomputation alone, which is solved first."""
HOST_BOUND_SHARE = 0.15
"""The part of the seconds that is kept for the bound."""
HOST_LEAST_PRECISION = 500
"""The least budget with a host is searched to this part of the floor."""
HOST_QUICK_SECONDS = 5.0
"""What the bound may take in a search for the largest batch."""
