"""What trees predict, by XGBoost and by onnxruntime.

    predict.py make DIR ROWS        trains on made-up rows; writes rows.tsv, rows.npy and model.ubj
    predict.py one DIR              microseconds of a call of onnxruntime for one row
    predict.py batch DIR THREADS    rows a second of XGBoost over an array in memory
    predict.py copy DIR THREADS     the same, from COPY out of the table `features` of PG*
"""

import io
import json
import sys
import time

import numpy

FEATURES = 20


def make(folder, rows):
    import xgboost
    rng = numpy.random.default_rng(42)
    data = rng.random((rows, FEATURES), dtype=numpy.float32)
    data[:, :5] = numpy.round(data[:, :5] * 20)
    data[rng.random(data.shape) < 0.05] = numpy.nan
    filled = numpy.nan_to_num(data)
    label = (filled[:, 0] / 20 + filled[:, 6] * filled[:, 7] - filled[:, 8] + rng.normal(size=rows) / 4 > 0.3).astype(numpy.float32)
    names = [f"f{i}" for i in range(FEATURES)]
    few = slice(0, min(rows, 100000))
    booster = xgboost.train({"objective": "binary:logistic", "max_depth": 6, "tree_method": "hist"}, xgboost.DMatrix(data[few], label[few], feature_names=names), 100)
    booster.save_model(f"{folder}/model.ubj")
    booster.save_model(f"{folder}/model.json")
    numpy.save(f"{folder}/rows.npy", data)
    with open(f"{folder}/rows.tsv", "w") as out:
        for number, row in enumerate(data.tolist()):
            out.write(f"{number}\t0\t" + "\t".join("\\N" if v != v else repr(v) for v in row) + "\n")


def best(what, rounds=5):
    """The shortest of some times."""
    times = []
    for _ in range(rounds):
        start = time.perf_counter()
        what()
        times.append(time.perf_counter() - start)
    return min(times)


def one(folder):
    import onnx
    import onnxruntime
    with open(f"{folder}/model.json") as file:
        learner = json.load(file)["learner"]
    nodes = {name: [] for name in ("treeids", "nodeids", "featureids", "values", "modes", "truenodeids", "falsenodeids", "missing_value_tracks_true")}
    leaves = {name: [] for name in ("treeids", "nodeids", "ids", "weights")}
    for number, tree in enumerate(learner["gradient_booster"]["model"]["trees"]):
        for node, (left, right) in enumerate(zip(tree["left_children"], tree["right_children"])):
            is_leaf = left < 0
            for name, value in (("treeids", number), ("nodeids", node), ("featureids", 0 if is_leaf else tree["split_indices"][node]), ("values", 0.0 if is_leaf else tree["split_conditions"][node]),
                                ("modes", "LEAF" if is_leaf else "BRANCH_LT"), ("truenodeids", max(left, 0)), ("falsenodeids", max(right, 0)), ("missing_value_tracks_true", int(tree["default_left"][node]))):
                nodes[name].append(value)
            if is_leaf:
                for name, value in (("treeids", number), ("nodeids", node), ("ids", 0), ("weights", tree["split_conditions"][node])):
                    leaves[name].append(value)
    trees = onnx.helper.make_node("TreeEnsembleRegressor", ["row"], ["margin"], domain="ai.onnx.ml", n_targets=1, **{f"nodes_{k}": v for k, v in nodes.items()}, **{f"target_{k}": v for k, v in leaves.items()})
    graph = onnx.helper.make_graph([trees, onnx.helper.make_node("Sigmoid", ["margin"], ["probability"])], "trees", [onnx.helper.make_tensor_value_info("row", onnx.TensorProto.FLOAT, [None, FEATURES])],
                                   [onnx.helper.make_tensor_value_info("probability", onnx.TensorProto.FLOAT, [None, 1])])
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 13), onnx.helper.make_opsetid("ai.onnx.ml", 3)], ir_version=8)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(model.SerializeToString(), options)
    rows = numpy.load(f"{folder}/rows.npy")[:20000]
    rows = [rows[i:i + 1] for i in range(len(rows))]
    print(round(best(lambda: [session.run(None, {"row": row}) for row in rows]) / len(rows) * 1e6, 2))


def batch(folder, threads):
    import xgboost
    booster = xgboost.Booster({"nthread": threads}, model_file=f"{folder}/model.ubj")
    booster.feature_names = None
    rows = numpy.load(f"{folder}/rows.npy")
    print(round(len(rows) / best(lambda: booster.inplace_predict(rows, validate_features=False))))


def copy(folder, threads):
    import psycopg2
    import xgboost
    booster = xgboost.Booster({"nthread": threads}, model_file=f"{folder}/model.ubj")
    cursor = psycopg2.connect("").cursor()
    # what numpy reads fastest of all that COPY writes: each column has a header and an item of four bytes, when it is there
    columns = ", ".join(f"coalesce(f{i}, 'NaN')" for i in range(FEATURES))

    def run():
        out = io.BytesIO()
        cursor.copy_expert(f"COPY (SELECT {columns} FROM features) TO STDOUT (FORMAT binary)", out)
        width = 2 + 8 * FEATURES
        body = numpy.frombuffer(out.getbuffer(), dtype=numpy.uint8)[19:-2].reshape(-1, width)[:, 2:].reshape(-1, FEATURES, 8)[:, :, 4:]
        rows = numpy.ascontiguousarray(body).view(">f4").reshape(-1, FEATURES).astype(numpy.float32)
        run.rows = len(rows)
        booster.inplace_predict(rows, validate_features=False)

    seconds = best(run, 3)
    print(round(run.rows / seconds))


if sys.argv[1] == "make":
    make(sys.argv[2], int(sys.argv[3]))
elif sys.argv[1] == "one":
    one(sys.argv[2])
else:
    {"batch": batch, "copy": copy}[sys.argv[1]](sys.argv[2], int(sys.argv[3]))
