"""neurona-simulate: what a server would do under a load, before it is built or bought.

Discrete events on a virtual clock around the queue, the admission, the batcher and the device
scheduler that the server itself uses. Only the model's run, the network and the callers are
imitated, from measured costs.

    kernel     virtual time: events, processes that block in it, conditions to wait in
    costs      how long batches take, drawn from measured distributions
    arrivals   when requests come: Poisson, in bursts, or as recorded
    model      one model of one server: a real batcher whose runs take virtual time
    scenario   what is simulated, as a JSON file or a server describes it
    server     one server: the thread that reads requests, its models, its devices
    experiment simulates a scenario for a time, and reports what its callers would have met
    search     how many servers, which rate, which objective
    optimum    the best possible batches, as a semi-Markov decision process
    description asks a server what its models cost
    command    neurona-simulate
"""
